"""How tables are made: chain and log in, one published generation out."""

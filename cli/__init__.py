"""What people type, and the simulated subnet."""

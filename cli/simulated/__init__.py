"""The outside world, simulated: a Subtensor node, Chutes and Hugging Face, for demo and tests."""

"""Trains the parts of the emoji world: `python -m diffusion_gym.emoji.pretrain {autoencoder,generator,...}`."""

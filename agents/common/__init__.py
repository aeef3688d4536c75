"""What every agent shares, each written once.

distribution   LatentGaussian: the next latent, one sigma a sample
actor          DenoisingActor: UNet, guidance and transition kernel as a Tianshou actor
critic         LatentCritic: (latent, prompt, step) -> value
policy         DenoisingPolicy: a Tianshou policy that keeps the log-probability of what it did
venv           BatchedVenv: the vector environment as Tianshou's Collector wants it
buffer         LatentReplayBuffer: trajectories stored once
optim          optimizer factories over the trainable parameters
lora, reference, advantages, algorithm, checkpoint, sampling
"""

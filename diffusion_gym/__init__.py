"""The denoising of a text-to-image diffusion model as a Gymnasium environment.

Importing this package registers `TextToImage-v0` and imports nothing heavy.
"""

import gymnasium

__all__ = ["__version__", "register_envs"]
__version__ = "0.1.0"


def register_envs() -> None:
    """Register the environments with Gymnasium; calling it again changes nothing."""
    if "TextToImage-v0" not in gymnasium.registry:
        gymnasium.register(
            id="TextToImage-v0",
            entry_point="diffusion_gym.envs.text_to_image:TextToImageEnv",
            vector_entry_point="diffusion_gym.envs.vector:TextToImageVectorEnv",
        )


register_envs()

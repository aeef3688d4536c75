"""The denoising MDP (Fan et al. 2023, DPOK) as Gymnasium environments.

    env  = gymnasium.make("TextToImage-v0")                        # text_to_image.TextToImageEnv
    envs = gymnasium.make_vec("TextToImage-v0", num_envs=64)       # vector.TextToImageVectorEnv

Both are thin faces of `core.DenoisingCore`, which holds N episodes in one tensor. Their attributes `pipeline`,
`kernel`, `prompts` and `reward` are what an agent needs beyond the observations.
"""

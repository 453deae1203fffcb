"""Paint handwritten digits from a prompt, with a latent diffusion model that is small enough to train in minutes.

It has the parts of a large one: a *text encoder* reads the prompt; a *denoiser* takes noise out of a *latent*, a
picture of 4 by 4 cells, in many steps; a *decoder* turns the latent into a picture of 32 by 32 pixels.

    words              the words of a prompt, and their tokens
    nets, trained      the networks, and their weights
    prompts, noise     the host's part before the loop: texts to tokens, seeds to noise
    sheets             the host's part after it: many small pictures to one large one
    pipeline           puts them together
"""

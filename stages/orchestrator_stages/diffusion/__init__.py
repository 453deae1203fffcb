"""Make pictures by removing noise from noise, step by step.

A *denoiser* is a network that looks at a noisy picture (or at its *latents*, a small picture that a decoder
turns into a large one) and says what of it is noise. A *scheduler* decides how much noise there is after each
step, and how the latents move from one step to the next. Its arithmetic depends on the step alone, so it is
split in two:

    a *table*    made on the host from the scheduler's options, one row for each step
    a *step*     a stage on the device: what the denoiser said, the latents and one row, to the next latents

The table is what a loop hands out row by row (``each``); the latents are what it carries.

    schedule       how noise falls: betas, spacing of timesteps and levels, what all schedulers have in common
    schedulers     DDIM, Euler, flow matching: options to tables
    step           their steps as stages
    guidance       two guesses in one batch, one with the prompt and one without
    loop           the body of the loop: ask the denoiser, guide its answer, take the step
    tokens, latents, images         the host's part: prompts to token ids, seeds to noise, bytes to images
    encoders, denoisers, decoders   models of diffusers as stages
    convert        from_diffusers: finds the family and checks its parts
    families       how the pipeline of each is drawn, with the builder
    options, parts, parity          what is followed, and what is refused: arguments, parts, scheduler
    toy            tiny pipelines of diffusers to try things with

The schedulers and guidance need torch and numpy only.
"""

"""Make pictures by removing noise from noise, step by step.

A *denoiser* is a network that looks at a noisy picture (or at its *latents*, a small picture that a decoder
turns into a large one) and says what of it is noise. A *scheduler* decides how much noise there is after each
step, and how the latents move from one step to the next. Its arithmetic depends on the step alone, so it is
split in two:

    a *table*    made on the host from the scheduler's options, one row for each step
    a *step*     a stage on the device: what the denoiser said, the latents and one row, to the next latents

The table is what a loop hands out row by row (``each``); the latents are what it carries.

    schedule     what all schedulers have in common, and how one is chosen by name
    noise        how noisy a picture is at each timestep of training
    spacing      which of those timesteps, or which noise levels, a request visits
    ddim, euler, flow_match   the schedulers
    guidance     two guesses in one batch, one with the prompt and one without
    tokens, latents           the host's part: prompts to token ids, seeds to noise
    encoders, denoisers, decoders   models of diffusers as stages
    parts, twins              what is followed, and what is refused, of a pipeline's parts and scheduler
    convert      a diffusers pipeline as a pipeline of these stages

The schedulers and guidance need torch and numpy only.
"""

"""Speech to text with Whisper: a recording in, what is said in it out.

    recording    a WAV file, and its resampling to what the model hears
    mel          log-mel spectrograms, as the model was trained on them
    cut          a recording into segments the model can hear, and those into spectrograms
    ct2          files of weights in the form of CTranslate2
    checkpoint   weights from an optional package or a folder, with their tokenizer
    read         tokens to text
    pipeline     the pipeline `speech`

Needs the extra `speech`.
"""

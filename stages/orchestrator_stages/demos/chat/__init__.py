"""Talk about pictures of shapes, with a vision-text model that is small enough to train in minutes.

It has the parts of a large one, of transformers' own classes: a *vision tower* reads a picture patch by patch, a
*projector* turns what it saw into embeddings of the text model, which stand in the conversation where the picture does,
and a *text model* writes the answer, token after token.

    scenes             what a picture shows, and how it is drawn
    questions          what may be asked about it, and the true answers
    words              the tokens of a conversation, and its template
    model              the sizes of the model, and its trained weights
    pipeline           puts them together
"""

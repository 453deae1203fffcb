"""Find faces in a photo with a cascade of three small networks.

Most of a photo shows no face, so a network that looked with care at every place in every size would waste
nearly all its work. A *cascade* asks cheap questions first: each network drops most of what it sees and hands
the rest to a larger one. What lies between two networks (thresholds, suppression of duplicates, cropping)
depends on the values and is plain Python on the host.

    nets, trained            the networks, and their weights
    letterbox, pyramid       a photo of any size becomes a square of one size, then the same in several sizes
    propose, refine, finish  the host's step after each network
    annotate                 draws the result
    boxes                    the geometry they share
    pipeline                 puts them together
"""

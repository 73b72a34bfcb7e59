"""Pre-training of the embedded backbones on generated scenes and captions.

Objectives, all in one pass over a batch of fresh scenes. First half: words masked in true captions are
to be restored, and where only one is masked, the pooled feature is to name it too. Second half: captions
are to be told from negatives, some another scene's caption, some hard ones in which one word was changed;
and every word is to tell whether it is the changed one. Whole batch: each patch is to tell the colour, shape
and size of the thing whose centre it holds, and where images have an encoder of their own (METER), its output
is to tell them too. Masked words and matching are ViLT's and METER's own objectives. Those about changed words
and patches are there because with the two alone learning stays at chance for tens of thousands of scenes; the
one about the pooled feature, because matching alone teaches it to carry nothing but yes or no, and a few
thousand examples of a task are too few to learn the rest. All heads but the matching one are dropped afterwards.
"""

"""Pre-training of the embedded backbones on generated scenes and captions.

All objectives are computed in one pass over a batch of new scenes.

First half of the batch: predict the words that are masked in true captions. Where a caption has only one masked
word, the pooled feature predicts it too.
Second half: tell true captions from negatives (captions of another scene, or hard negatives with one changed word),
and predict for every word whether it was changed.
Whole batch: predict colour, shape and size of the object whose centre lies in a patch. If images have an encoder of
their own (METER), its output predicts them too.

Masked words and matching are ViLT's and METER's own objectives. With these two alone, learning stays at chance for
tens of thousands of scenes, hence the objectives on changed words and patches. Matching alone teaches the pooled
feature nothing but yes or no, and a task's few thousand examples are too few to learn the rest, hence the objective
on the pooled feature. All heads except the matching head are dropped afterwards.
"""

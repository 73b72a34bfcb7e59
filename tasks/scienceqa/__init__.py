"""ScienceQA: school questions with options, some with a picture (Lu et al., NeurIPS 2022)."""

"""NLVR, the first corpus: statements about drawings."""

"""NLVR2: statements about pairs of photographs."""

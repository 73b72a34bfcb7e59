"""BridgeTower: METER's fusion layers, linked to the top layers of both encoders."""

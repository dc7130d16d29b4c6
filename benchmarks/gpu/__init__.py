"""``make gpu``: build for the card, test on it, measure against native, in nine minutes."""

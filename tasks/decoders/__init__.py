"""Ways from feature maps to logits per pixel: one file per family."""

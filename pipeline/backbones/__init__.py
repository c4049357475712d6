"""Backbones: a name becomes features at strides 2 to 32."""

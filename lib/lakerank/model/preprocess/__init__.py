"""From stored bytes to model inputs: images, tokenizers and the pipeline that prepares ahead of the device."""

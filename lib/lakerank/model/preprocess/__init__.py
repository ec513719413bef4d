"""From stored bytes to model inputs: images, tokenizers and the pipeline that prefetches for the device."""

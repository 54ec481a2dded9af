"""Turn files into aligned counts, and aligned counts into atlases, batches and masks."""

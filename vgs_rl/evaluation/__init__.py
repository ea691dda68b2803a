"""One evaluation for all samplers: metrics, each beside what a perfect sampler scores."""

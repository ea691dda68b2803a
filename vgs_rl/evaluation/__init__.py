"""One evaluation for all samplers: metrics, each with what a perfect sampler scores."""

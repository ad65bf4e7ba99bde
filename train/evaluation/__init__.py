"""One evaluation: what is counted of every sample, the figures that follow, and the files that keep them."""

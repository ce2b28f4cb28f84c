"""What quantization did to a model: comparisons, bisection, explanations, the page."""

"""What the fuzzer of the API is made of."""

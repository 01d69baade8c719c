"""The services of the fake gateway. Each call runs in a thread of its own."""

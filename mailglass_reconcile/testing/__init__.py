"""Real servers for tests and the demo, and a pytest plugin for the tests of applications."""

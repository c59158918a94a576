"""What is exported is a function of images."""

import pytest


@pytest.fixture(scope="session")
def network(image_network):
    """The name of a network of images, one for every kind."""
    return image_network

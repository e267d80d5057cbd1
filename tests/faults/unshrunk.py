"""A pytest plugin for `make broken`: a schedule that fails is enough; looking for the shortest one takes minutes."""

from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate])
settings.load_profile("unshrunk")

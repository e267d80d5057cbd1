"""A pytest plugin for `make broken` that does not shrink a failing schedule, which takes minutes."""

from hypothesis import Phase, settings

settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate])
settings.load_profile("unshrunk")

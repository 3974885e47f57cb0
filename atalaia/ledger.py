"""Which size is meant."""


def add_stage(*a):
    pass

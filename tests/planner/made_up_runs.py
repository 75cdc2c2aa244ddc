"""Families, and the law that their made-up runs follow."""

from isoflop.planner import Template

DENSE = Template(vocab_size=256, context=128)
MOE = tuple(DENSE.with_experts(f"moe-e8-g{g}", granularity=g, expansion_rate=8) for g in (1, 2, 4, 8))


def true_loss(counted, tokens, granularity, moe):
    """The law that the made-up runs follow, but for their noise."""
    size = (0.8 / granularity**0.6 + 6.0) / counted.params_total**0.18 if moe else 8 / counted.params_total**0.2
    return 1.0 + size + 12 / tokens**0.2

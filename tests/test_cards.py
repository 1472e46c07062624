"""What a run adds to the cards of its models."""

from trl_ziegler.experiments.cards import add_evaluation

CARD = "# Model Card\n\n### Results\n\n| … |\n\n### Framework versions\n\n- TRL: 1\n\n## Citations\n"


def rate(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 32}


def test_the_evaluation_stands_before_the_versions_once(tmp_path):
    card = tmp_path / "README.md"
    card.write_text(CARD)
    add_evaluation(card, {"kl": 1.0, "win_rate": {"zero_shot": rate(0.5)}})
    add_evaluation(card, {"kl": 2.34567, "win_rate": {"zero_shot": rate(0.75), "lead_3": rate(0.5)}})
    opening, closing = CARD.split("### Framework")
    assert card.read_text() == (
        f"{opening}### Evaluation on held-out queries\n\nKL to the start model: 2.346 nats per response.\n\n"
        "| the policy against | win rate | interval of 95% |\n| --- | --- | --- |\n"
        "| `zero_shot` | 0.750 | 0.650 to 0.850 |\n| `lead_3` | 0.500 | 0.400 to 0.600 |\n\n"
        f"### Framework{closing}"
    )

"""Model cards of what an experiment trains: the trainer's, at its place in the run, with what the run measured."""

import re
from pathlib import Path
from typing import Any

from .._files import write_text
from ..model_cards import VERSIONS, ModelCards

LOADED_FROM = re.compile(r'(?:from_pretrained|load_reward_model)\("([^"]+)"\)')
EVALUATION = "### Evaluation on held-out queries\n\n"


def save_with_card(trainer: ModelCards, folder: Path) -> None:
    """Save a model in `folder/model` with a card, which names the folder as it will be once the stage is complete."""
    model = folder / "model"
    place = Path(*(part.removesuffix(".partial") for part in model.parts))
    trainer.save_model(str(model))
    trainer.args.output_dir = str(model)  # where TRL writes the card
    trainer.create_model_card(title(place))
    if trainer.is_world_process_zero():
        card = model / "README.md"
        write_text(card, card.read_text(encoding="utf-8").replace(str(model), str(place)))


def title(model: Path) -> str:
    """What a model is called after the run and the stage that its folder lies in."""
    return "-".join(model.parts[-3:-1])


def readdress_cards(folder: Path, stage: str, place: Path) -> None:
    """Let the cards of models in `folder`, made as `stage` of some run, tell how to load them from `place`.

    What a card says besides, of training and results, is as true of a copy.
    """
    for card in folder.rglob("model/README.md"):
        text, inner = card.read_text(encoding="utf-8"), card.parent.relative_to(folder)
        named = LOADED_FROM.search(text)
        former = Path(named[1]) if named else Path()
        if former.parts[-len(inner.parts) - 1 :] != (stage, *inner.parts):
            continue  # the card of another place, or of the hub
        text = text.replace(f'"{former}"', f'"{place / inner}"')
        for opening in ("model_name: ", "# Model Card for "):
            text = text.replace(f"\n{opening}{title(former)}\n", f"\n{opening}{title(place / inner)}\n")
        write_text(card, text)


def add_evaluation(card: Path, metrics: dict[str, Any]) -> None:
    """Write what the stage `evaluate` found of a policy into its card, in place of what stood there of it."""
    opening, versions = card.read_text(encoding="utf-8").split(VERSIONS)
    rates = "".join(
        f"| `{name}` | {rate['value']:.3f} | {rate['low']:.3f} to {rate['high']:.3f} |\n"
        for name, rate in metrics["win_rate"].items()
    )
    evaluation = (
        f"{EVALUATION}KL to the start model: {metrics['kl']:.3f} nats per response.\n\n"
        f"| the policy against | win rate | interval of 95% |\n| --- | --- | --- |\n{rates}\n"
    )
    write_text(card, opening.split(EVALUATION)[0] + evaluation + VERSIONS + versions)

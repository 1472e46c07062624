"""Simulated people who answer at a running labelling page, to try it out; they judge texts of the embedded world only.

    python -m trl_ziegler.label --store labels.db --add_labeller ann bob > tokens
    python -m trl_ziegler.label --store labels.db --task sentiment
    python recipes/simulated_labellers.py --address http://127.0.0.1:8300/ --tokens tokens --task sentiment

They agree with each other as often as the people of Ziegler et al. 2019 (`trl_ziegler.labelers.paper_labelers`), and
answer whatever comes until they are interrupted; then the number of each one's answers is printed.
"""

from trl_ziegler.experiments.config_files import RecipeParser
from trl_ziegler.experiments.simulated_labellers import SimulatedLabellersArguments, main

if __name__ == "__main__":
    main(*RecipeParser(SimulatedLabellersArguments).parse_args_and_config())

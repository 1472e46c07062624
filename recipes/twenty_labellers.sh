#!/usr/bin/env bash
# The sentiment recipe with labels from twenty people, simulated, who answer at the real labelling page while PPO runs.
#
#   bash recipes/twenty_labellers.sh [RUN_DIRECTORY [further arguments of recipes/sentiment.py]]
#
# The same command goes on after an interruption. With people of flesh and blood, leave step 3 out and give each of them the
# address and a token (docs/tutorials/labelling.md).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run=${1:-runs/sentiment/twenty-labellers}
shift || true
python=${PYTHON:-python}
config=${CONFIG:-recipes/configs/sentiment/laptop-online.yaml}
store=$run/labels.db
mkdir -p "$run"

# 1. A store with twenty labellers, which appears with all of them, and a file of their tokens for its owner only. Tokens are
#    printed once, so that those of a call that was cut off are lost, and others are given in their place.
if [ ! -e "$run/tokens" ]; then
    (
        umask 077
        if [ ! -e "$store" ]; then
            rm -f "$store.part"*
            "$python" -m trl_ziegler.label --store "$store.part" --add_labeller person-{01..20} >/dev/null
            mv "$store.part" "$store"
        fi
        "$python" -m trl_ziegler.label --store "$store" --replace_token person-{01..20} >"$run/tokens.part"
    )
    mv "$run/tokens.part" "$run/tokens"
fi

# 2. The page, on a free port, until this script ends.
"$python" -m trl_ziegler.label --store "$store" --task sentiment --port 0 >"$run/page.log" 2>&1 &
page=$!
people=
trap 'kill $people $page 2>/dev/null || true; wait || true' EXIT
until address=$(sed -n 's/^Labelling page: //p' "$run/page.log") && [ -n "$address" ]; do
    kill -0 $page || { cat "$run/page.log" >&2; exit 1; }
    sleep 0.2
done
echo "Labelling page: $address"

# 3. Twenty people with tastes of their own, who answer whatever the page shows them.
"$python" recipes/simulated_labellers.py --address "$address" --tokens "$run/tokens" --task sentiment \
    >"$run/people.log" 2>&1 &
people=$!

# 4. The recipe, which asks for labels ahead of its need and waits for them; its last line is the path of the report.
"$python" -m accelerate.commands.launch recipes/sentiment.py --config "$config" \
    --output_dir "$run" --label_store "$store" --label_poll_seconds 0.5 --online_margin 256 "$@"

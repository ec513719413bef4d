"""A training run of several processes of which all but the first change their weights, and so their figures: CONFIG."""

import os
import sys

from lakerank_training.config import load_train_config
from lakerank_training.run import run_training

rate = 1e-12 if os.environ["RANK"] == "0" else 0.03
run_training(load_train_config(sys.argv[1], [f"optimizer.learning_rate={rate}"]))

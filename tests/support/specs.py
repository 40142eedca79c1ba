"""A small valid YAML file of experiments, which tests can change."""

GOOD = """\
name: x
defaults:
  epochs: 4
  data: {name: digits}
  loss: {offset: √2, temperature: 1/4}
runs:
  - {id: 0, name: A, model: {kind: patchwise}}
  - {id: 1, name: B, seed: 1, model: {kind: conv}}
profiles:
  quick:
    note: "quick: for looking only"
    changes: [{runs: "1", set: {batch_size: 20, model: {size: 8}}}]
columns: [{title: Acc, metric: accuracy}, {title: CRA, metric: cra_36}]
tables:
  - id: t
    title: T
    rows: [{label: A, run: 0, published: [1.0, 0.5]}]
"""

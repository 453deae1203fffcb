"""Whole random pipelines, each against its modules called by hand: a seed gives a recipe, a recipe gives a script."""

"""The packages of the wheel: everything below dollar/, and conf/ as dollar/conf/. All else is in setup.cfg."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["dollar*"]), "dollar.conf"], package_dir={"dollar.conf": "conf"})

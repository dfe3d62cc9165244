import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "skyreels_v2_infer" / "__init__.py").read_text(), re.M)[1]
XDIT = ["xfuser>=0.7", "yunchang>=0.6.4"]  # xDiT, and its attention engine, which is what is imported

setup(
    name="skyreels_v2_infer",
    version=VERSION,
    description="Command-line inference for the video model SkyReels-V2: text, images and videos to videos",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The skyreels_v2_infer authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Environment :: Console",
        "Programming Language :: Python :: 3",
        "Topic :: Multimedia :: Video",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
    python_requires=">=3.10",
    packages=find_packages(include=["skyreels_v2_infer", "skyreels_v2_infer.*"]),
    package_data={
        "skyreels_v2_infer": [
            *(f"assets/tiny/{pattern}" for pattern in ("*.md", "*/*.json", "*/*/*")),
            "media/report_page/*",
        ]
    },
    py_modules=["generate_video", "generate_video_df", "caption_video"],
    entry_points={
        "console_scripts": [
            "generate_video = generate_video:main",
            "generate_video_df = generate_video_df:main",
            "caption_video = caption_video:main",
        ]
    },
    # Ranges in which the package is expected to work; requirements.txt has the versions it is tested with.
    install_requires=[
        "torch>=2.6",
        "numpy>=1.26",
        "transformers>=5.0,<6",
        "safetensors>=0.4.3",
        "huggingface-hub>=1.0,<3",
        "imageio-ffmpeg>=0.6.0",
        "pillow>=11.0",
        "pillow-heif>=1.0",  # pictures of phones
        "tqdm>=4.66",
        "ftfy>=6.2",
    ],
    extras_require={
        "usp": XDIT,  # --use_usp
        "offload": ["accelerate", "diffusers>=0.41"],  # --offload
        "enhancer": ["accelerate"],  # --prompt_enhancer
        "captioner": ["json-repair>=0.30"],  # repairs damaged answers of a captioner
        "completion": ["argcomplete>=3"],  # flags in the shell
        "jxl": ["pillow-jxl-plugin>=1.3"],  # JPEG XL pictures
        "scenes": ["scenedetect>=0.7"],  # caption_video.py --scenes
        "ray": ["ray>=2.52"],  # --ray
        "vllm": ["vllm>=0.8.4"],  # caption_video.py --backend vllm
        "dev": [
            *("accelerate", "diffusers>=0.41", "gguf>=0.10", "hypothesis", "json-repair>=0.30", "matplotlib"),
            *("argcomplete>=3", "coverage>=7.10", "pytest>=8", "pytest-xdist", "ruff"),
            *("protobuf", "sentencepiece", *XDIT),
        ],
    },
)

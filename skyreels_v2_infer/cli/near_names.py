"""The flag or the model that a name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Collection

# Flags of other programs for videos and pictures, and short ones -> ours.
FOREIGN = {
    "--prompt": ("-p", "--text", "--caption", "--positive_prompt", "--positive"),
    "--negative_prompt": ("-n", "--neg_prompt", "--n_prompt", "--negative", "--sample_neg_prompt"),
    "--prompt_enhancer": ("--use_prompt_extend", "--enhance_prompt", "--prompt_extend"),
    "--image": ("-i", "--image_path", "--img", "--input_image", "--init_image", "--first_frame", "--image_start"),
    "--end_image": ("--last_image", "--last_frame", "--image_end", "--end_frame"),
    "--video_path": ("--video", "--input_video", "--init_video"),
    "--model_id": ("-m", "--model", "--model_path", "--model_name", "--ckpt_dir", "--ckpt", "--checkpoint", "--task"),
    "--dit_path": ("--dit", "--transformer", "--transformer_path", "--unet"),
    "--vae_path": ("--vae",),
    "--vae_tiling": ("--vae_slicing", "--enable_vae_tiling", "--tiled_vae"),
    "--text_encoder_path": ("--t5", "--text_encoder", "--t5_path", "--clip"),
    "--outdir": ("-o", "--output", "--out", "--output_dir", "--out_dir", "--output_path", "--save_path", "--save_dir"),
    "--name": ("--save_file", "--output_name", "--filename", "--file_name"),
    "--num_frames": ("-f", "--frames", "--frame_num", "--length", "--video_length", "--n_frames", "--duration"),
    "--resolution": ("--size", "--video_size", "--res"),
    "--height": ("-H", "--H"),
    "--width": ("-W", "--W"),
    "--fps": ("-r", "--frame_rate", "--framerate"),
    "--inference_steps": ("--steps", "--num_inference_steps", "--sample_steps", "--num_steps", "--infer_steps"),
    "--guidance_scale": (
        "--cfg",
        "--cfg_scale",
        "--guidance",
        "--sample_guide_scale",
        "--embedded_cfg_scale",
        "--scale",
    ),
    "--shift": ("--flow_shift", "--sample_shift", "--timestep_shift"),
    "--solver": ("--sampler", "--scheduler", "--sample_solver", "--sampler_name"),
    "--seed": ("-s", "--base_seed", "--random_seed"),
    "--lora": ("-l", "--loras", "--lora_path", "--lora_weight", "--lora_weights", "--lora_scale", "--lora_strength"),
    "--overlap_history": ("--overlap", "--overlap_frames"),
    "--device": ("--gpu", "--gpu_id", "--device_id", "--cuda"),
    "--dtype": ("--precision", "--torch_dtype", "--weight_dtype", "--fp16", "--bf16", "--half"),
    "--offload": (
        "--offload_model",
        "--cpu_offload",
        "--lowvram",
        "--low_vram",
        "--enable_model_cpu_offload",
        "--enable_sequential_cpu_offload",
        "--t5_cpu",
    ),
    "--memory": ("--vram", "--vram_limit", "--max_memory"),
    "--attention": ("--attn", "--attention_mode", "--attn_mode"),
    "--use_usp": ("--multi_gpu", "--parallel", "--dit_fsdp", "--t5_fsdp"),
    "--ulysses_degree": ("--ulysses_size",),
    "--ring_degree": ("--ring_size",),
    "--teacache": ("--enable_teacache", "--use_teacache"),
    "--teacache_thresh": ("--teacache_threshold", "--tea_cache_l1_thresh", "--rel_l1_thresh"),
    "--jobs": (
        "--batch",
        "--batch_size",
        "--num_videos",
        "--num_samples",
        "--prompts_file",
        "--prompt_file",
        "--input_file",
    ),
    "--config": ("-c", "--config_file", "--cfg_file", "--settings"),
    "--dry_run": ("--dry", "--plan"),
    "--list_models": ("--models", "--list"),
    "--version": ("-v", "-V"),
}
OURS = {foreign: ours for ours, names in FOREIGN.items() for foreign in names}


def nearest_flag(flag: str, known: Collection[str]) -> str | None:
    """The known flag that `flag` was probably meant to be, by another program's name or by its letters; None: none."""
    ours = OURS.get(flag) or OURS.get(flag.replace("-", "_").replace("__", "--", 1)) or flag
    if ours not in known:
        ours = ours.lower().replace("-", "_").replace("__", "--", 1)
    if ours in known:
        return ours
    close = difflib.get_close_matches(ours, known, 1, cutoff=0.7)
    return close[0] if close else None

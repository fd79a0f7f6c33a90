//! Networks to and from the folder layout of the diffusers library (`SD3Transformer2DModel`).
//!
//! Three things differ from the original names: fused qkv rows are three tensors, the two halves of exactly two
//! modulations (the final layer's and the last context block's) are swapped, and everything is called differently.
//! The table `links` says which, once, for both directions. Conventions: diffusers 0.42.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::checkpoint::read_tensor;
use super::names::differences;
use super::{Dtype, Entry, SafetensorsFile, Tensor, Tensors, parameter_shapes, prepare_safetensors, write_atomically};
use crate::model::ModelConfig;
use crate::{Error, Result};

const FOLDER: &str = "transformer";
const CONFIG: &str = "config.json";
const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";
const INDEX: &str = "diffusion_pytorch_model.safetensors.index.json";
const CLASS: &str = "SD3Transformer2DModel";
/// The version of diffusers whose conventions are written.
const VERSION: &str = "0.42.1";
/// Side of the latents that the published models are meant for (1024 pixels).
const SAMPLE_SIZE: usize = 128;

/// How one original tensor is stored by diffusers.
enum Link {
    /// Under another name.
    Same { original: String, diffusers: String },
    /// As three tensors of a third of the rows each.
    Split { original: String, diffusers: [String; 3] },
    /// With its first and second half of the rows swapped: shift, scale becomes scale, shift.
    Swapped { original: String, diffusers: String },
}

/// Writes `folder/transformer/`, ready for `SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")`.
///
/// # Errors
/// When the tensors are not those of `model`, or a file cannot be written.
pub fn export(model: &ModelConfig, tensors: &Tensors, folder: impl AsRef<Path>, dtype: Dtype) -> Result<()> {
    let folder = folder.as_ref().join(FOLDER);
    let wrong = differences(&parameter_shapes(model), &shapes_of(tensors));
    if !wrong.is_empty() {
        return Err(Error::file(&folder, format!("is not written, the tensors do not fit the model: {wrong}")));
    }
    std::fs::create_dir_all(&folder).map_err(|source| Error::io("create", &folder, source))?;
    let entries = links(model).into_iter().flat_map(|link| exported(link, tensors, dtype)).collect();
    let weights = folder.join(WEIGHTS);
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let prepared = prepare_safetensors(&metadata, entries).map_err(|error| Error::file(&weights, format!("is not written: {error}")))?;
    write_atomically(&weights, |out| prepared.write(out))?;
    let config = format!("{:#}\n", config_json(model));
    write_atomically(&folder.join(CONFIG), |out| out.write_all(config.as_bytes()))
}

/// Reads a diffusers folder: the `transformer` folder itself, or the pipeline's folder around it; weights in one file or sharded.
///
/// # Errors
/// When a file is missing or damaged, the architecture is not supported, or tensors are missing, left over or misshapen.
pub fn import(folder: impl AsRef<Path>) -> Result<(ModelConfig, Tensors)> {
    let folder = folder.as_ref();
    let inner = folder.join(FOLDER);
    let folder = if inner.join(CONFIG).is_file() { inner } else { folder.to_owned() };
    let model = read_config(&folder.join(CONFIG))?;
    let weights = Weights::open(&folder)?;
    if model.depth > weights.place.len() {
        return Err(Error::file(
            &folder,
            format!("has only {} tensors for the {} blocks of its {CONFIG}", weights.place.len(), model.depth),
        ));
    }
    let links = links(&model);
    let wrong = differences(&needed(&links, &model), &weights.shapes()?);
    if !wrong.is_empty() {
        return Err(Error::file(&folder, format!("holds weights that do not fit its {CONFIG}: {wrong}")));
    }
    let tensors = links.into_par_iter().map(|link| imported(link, &weights)).collect::<Result<_>>()?;
    Ok((model, tensors))
}

fn shapes_of(tensors: &Tensors) -> BTreeMap<String, Vec<usize>> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
}

// ---------------------------------------------------------------------------------------------------------- names

fn links(model: &ModelConfig) -> Vec<Link> {
    let mut links = Links(Vec::new());
    links.same("pos_embed", "pos_embed.pos_embed");
    links.linear("x_embedder.proj", "pos_embed.proj");
    for (original, diffusers) in [("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")] {
        links.linear(&format!("{original}.mlp.0"), &format!("time_text_embed.{diffusers}.linear_1"));
        links.linear(&format!("{original}.mlp.2"), &format!("time_text_embed.{diffusers}.linear_2"));
    }
    links.linear("context_embedder", "context_embedder");
    for block in 0..model.depth {
        links.block(model, block);
    }
    links.swapped("final_layer.adaLN_modulation.1", "norm_out.linear");
    links.linear("final_layer.linear", "proj_out");
    links.0
}

struct Links(Vec<Link>);

impl Links {
    fn same(&mut self, original: &str, diffusers: &str) {
        self.0.push(Link::Same { original: original.to_owned(), diffusers: diffusers.to_owned() });
    }

    fn linear(&mut self, original: &str, diffusers: &str) {
        self.same(&format!("{original}.weight"), &format!("{diffusers}.weight"));
        self.same(&format!("{original}.bias"), &format!("{diffusers}.bias"));
    }

    fn swapped(&mut self, original: &str, diffusers: &str) {
        for part in ["weight", "bias"] {
            self.0.push(Link::Swapped { original: format!("{original}.{part}"), diffusers: format!("{diffusers}.{part}") });
        }
    }

    fn qkv(&mut self, original: &str, diffusers: [String; 3]) {
        for part in ["weight", "bias"] {
            self.0.push(Link::Split {
                original: format!("{original}.qkv.{part}"),
                diffusers: diffusers.clone().map(|name| format!("{name}.{part}")),
            });
        }
    }

    fn block(&mut self, model: &ModelConfig, block: usize) {
        let (last, dual) = (block + 1 == model.depth, block < model.dual_attention_blocks);
        let image = format!("joint_blocks.{block}.x_block");
        let text = format!("joint_blocks.{block}.context_block");
        let theirs = format!("transformer_blocks.{block}");

        self.linear(&format!("{image}.adaLN_modulation.1"), &format!("{theirs}.norm1.linear"));
        self.qkv(&format!("{image}.attn"), ["q", "k", "v"].map(|x| format!("{theirs}.attn.to_{x}")));
        self.qkv(&format!("{text}.attn"), ["q", "k", "v"].map(|x| format!("{theirs}.attn.add_{x}_proj")));
        if model.qk_norm {
            for x in ["q", "k"] {
                self.same(&format!("{image}.attn.ln_{x}.weight"), &format!("{theirs}.attn.norm_{x}.weight"));
                self.same(&format!("{text}.attn.ln_{x}.weight"), &format!("{theirs}.attn.norm_added_{x}.weight"));
            }
        }
        self.linear(&format!("{image}.attn.proj"), &format!("{theirs}.attn.to_out.0"));
        self.mlp(&image, &format!("{theirs}.ff"));
        if dual {
            self.qkv(&format!("{image}.attn2"), ["q", "k", "v"].map(|x| format!("{theirs}.attn2.to_{x}")));
            for x in ["q", "k"].iter().filter(|_| model.qk_norm) {
                self.same(&format!("{image}.attn2.ln_{x}.weight"), &format!("{theirs}.attn2.norm_{x}.weight"));
            }
            self.linear(&format!("{image}.attn2.proj"), &format!("{theirs}.attn2.to_out.0"));
        }

        let (modulation, norm) = (format!("{text}.adaLN_modulation.1"), format!("{theirs}.norm1_context.linear"));
        if last {
            self.swapped(&modulation, &norm);
        } else {
            self.linear(&modulation, &norm);
            self.linear(&format!("{text}.attn.proj"), &format!("{theirs}.attn.to_add_out"));
            self.mlp(&text, &format!("{theirs}.ff_context"));
        }
    }

    fn mlp(&mut self, original: &str, diffusers: &str) {
        self.linear(&format!("{original}.mlp.fc1"), &format!("{diffusers}.net.0.proj"));
        self.linear(&format!("{original}.mlp.fc2"), &format!("{diffusers}.net.2"));
    }
}

/// A matrix of the network as diffusers' module of that name holds it: all rows of an original weight, a third of them, or with
/// halves swapped.
pub(crate) struct Matrix {
    /// Diffusers' module, without `.weight`.
    pub module: String,
    /// The original weight.
    pub original: String,
    /// Which third of its rows, of fused queries, keys and values.
    pub third: Option<usize>,
    /// Whether the first and the second half of the rows are swapped.
    pub swapped: bool,
}

/// Every weight matrix of the network, in the order of diffusers' modules.
pub(crate) fn matrices(model: &ModelConfig) -> Vec<Matrix> {
    let of = |original: &str, diffusers: &str, third, swapped| {
        let module = diffusers.strip_suffix(".weight")?.to_owned();
        Some(Matrix { module, original: original.to_owned(), third, swapped })
    };
    let matrices = links(model).into_iter().flat_map(|link| match link {
        Link::Same { original, diffusers } => vec![of(&original, &diffusers, None, false)],
        Link::Swapped { original, diffusers } => vec![of(&original, &diffusers, None, true)],
        Link::Split { original, diffusers } => {
            diffusers.iter().enumerate().map(|(third, name)| of(&original, name, Some(third), false)).collect()
        }
    });
    // Norms are vectors.
    matrices.flatten().filter(|matrix| !matrix.module.contains(".norm_")).collect()
}

/// Shapes of all tensors under diffusers' names.
fn needed(links: &[Link], model: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
    let shapes = parameter_shapes(model);
    let mut needed = BTreeMap::new();
    for link in links {
        match link {
            Link::Same { original, diffusers } | Link::Swapped { original, diffusers } => {
                needed.insert(diffusers.clone(), shapes[original].clone());
            }
            Link::Split { original, diffusers } => {
                let third = third(&shapes[original]);
                needed.extend(diffusers.iter().map(|name| (name.clone(), third.clone())));
            }
        }
    }
    needed
}

fn third(shape: &[usize]) -> Vec<usize> {
    let mut third = shape.to_vec();
    third[0] /= 3;
    third
}

fn exported(link: Link, tensors: &Tensors, dtype: Dtype) -> Vec<Entry<'_>> {
    match link {
        Link::Same { original, diffusers } => {
            let tensor = &tensors[&original];
            vec![Entry::floats(diffusers, &tensor.shape, vec![&tensor.data], dtype)]
        }
        Link::Swapped { original, diffusers } => {
            let tensor = &tensors[&original];
            let (shift, scale) = tensor.data.split_at(tensor.data.len() / 2);
            vec![Entry::floats(diffusers, &tensor.shape, vec![scale, shift], dtype)]
        }
        Link::Split { original, diffusers } => {
            let tensor = &tensors[&original];
            let (shape, rows) = (third(&tensor.shape), tensor.data.chunks_exact(tensor.data.len() / 3));
            diffusers.into_iter().zip(rows).map(|(name, rows)| Entry::floats(name, &shape, vec![rows], dtype)).collect()
        }
    }
}

fn imported(link: Link, weights: &Weights) -> Result<(String, Tensor)> {
    match link {
        Link::Same { original, diffusers } => Ok((original, weights.read(&diffusers)?)),
        Link::Swapped { original, diffusers } => {
            let mut tensor = weights.read(&diffusers)?;
            let half = tensor.data.len() / 2;
            tensor.data.rotate_left(half);
            Ok((original, tensor))
        }
        Link::Split { original, diffusers: [q, k, v] } => {
            let mut tensor = weights.read(&q)?;
            tensor.shape[0] *= 3;
            tensor.data.reserve_exact(2 * tensor.data.len());
            tensor.data.extend(weights.read(&k)?.data);
            tensor.data.extend(weights.read(&v)?.data);
            Ok((original, tensor))
        }
    }
}

// --------------------------------------------------------------------------------------------------------- config

fn config_json(model: &ModelConfig) -> serde_json::Value {
    json!({
        "_class_name": CLASS,
        "_diffusers_version": VERSION,
        "attention_head_dim": model.head_dim,
        "caption_projection_dim": model.hidden(),
        "dual_attention_layers": (0..model.dual_attention_blocks).collect::<Vec<_>>(),
        "in_channels": model.in_channels,
        "joint_attention_dim": model.context_dim,
        "num_attention_heads": model.heads,
        "num_layers": model.depth,
        "out_channels": model.in_channels,
        "patch_size": model.patch,
        "pooled_projection_dim": model.pooled_dim,
        "pos_embed_max_size": model.pos_embed_max,
        "qk_norm": model.qk_norm.then_some("rms_norm"),
        "sample_size": SAMPLE_SIZE.min(model.pos_embed_max * model.patch),
    })
}

/// What decides the architecture in `config.json`; other keys do not matter to it.
#[derive(Deserialize)]
struct Config {
    #[serde(rename = "_class_name")]
    class_name: String,
    attention_head_dim: usize,
    caption_projection_dim: usize,
    #[serde(default)]
    dual_attention_layers: Vec<usize>,
    in_channels: usize,
    joint_attention_dim: usize,
    num_attention_heads: usize,
    num_layers: usize,
    #[serde(default)]
    out_channels: Option<usize>,
    patch_size: usize,
    pooled_projection_dim: usize,
    pos_embed_max_size: usize,
    #[serde(default)]
    qk_norm: Option<String>,
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    serde_json::from_str(&text).map_err(|error| Error::file(path, format!("{error}: it is damaged or belongs to another kind of model")))
}

fn read_config(path: &Path) -> Result<ModelConfig> {
    let config: Config = read_json(path)?;
    let fail = |cause: String| Err(Error::file(path, format!("{cause}: only the Stable Diffusion 3 family can be imported")));
    if config.class_name != CLASS {
        return fail(format!("describes a {}, not a {CLASS}", config.class_name));
    }
    if !config.dual_attention_layers.iter().copied().eq(0..config.dual_attention_layers.len()) {
        return fail(format!("dual_attention_layers = {:?} are not the leading blocks", config.dual_attention_layers));
    }
    if let Some(other) = config.qk_norm.as_ref().filter(|norm| *norm != "rms_norm") {
        return fail(format!("qk_norm = \"{other}\" is neither null nor \"rms_norm\""));
    }
    if let Some(out) = config.out_channels.filter(|out| *out != config.in_channels) {
        return fail(format!("out_channels = {out} differs from in_channels = {}", config.in_channels));
    }
    let model = ModelConfig {
        depth: config.num_layers,
        heads: config.num_attention_heads,
        head_dim: config.attention_head_dim,
        in_channels: config.in_channels,
        patch: config.patch_size,
        context_dim: config.joint_attention_dim,
        pooled_dim: config.pooled_projection_dim,
        pos_embed_max: config.pos_embed_max_size,
        qk_norm: config.qk_norm.is_some(),
        dual_attention_blocks: config.dual_attention_layers.len(),
    };
    model.validate().map_err(|error| Error::file(path, format!("describes no model that can be built: {error}")))?;
    if config.caption_projection_dim != model.hidden() {
        return fail(format!("caption_projection_dim = {} is not the hidden width {}", config.caption_projection_dim, model.hidden()));
    }
    Ok(model)
}

// -------------------------------------------------------------------------------------------------------- weights

/// The weights of a folder: one file, or several with an index.
struct Weights {
    files: Vec<SafetensorsFile>,
    /// Which file holds a tensor.
    place: BTreeMap<String, usize>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Weights {
    fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        if single.is_file() {
            let file = SafetensorsFile::open(single)?;
            let place = file.names().iter().map(|name| (name.clone(), 0)).collect();
            return Ok(Self { files: vec![file], place });
        }
        if !index.is_file() {
            return Err(Error::file(
                folder,
                format!("holds neither {WEIGHTS} nor {INDEX}: name a folder written by diffusers' save_pretrained"),
            ));
        }
        Self::open_sharded(folder, &index)
    }

    fn open_sharded(folder: &Path, index: &Path) -> Result<Self> {
        let weight_map = read_json::<Index>(index)?.weight_map;
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort_unstable();
        shards.dedup();
        if let Some(bad) = shards.iter().find(|name| Path::new(name).file_name().is_none_or(|file| file != name.as_str())) {
            return Err(Error::file(index, format!("names the shard `{bad}`, which is not a file of its own folder")));
        }
        let paths: Vec<PathBuf> = shards.iter().map(|name| folder.join(name)).collect();
        let files = paths.iter().map(SafetensorsFile::open).collect::<Result<Vec<_>>>()?;
        let mut place = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for name in file.names() {
                if weight_map.get(name).is_none_or(|shard| shard != shards[number]) {
                    return Err(Error::file(file.path(), format!("holds `{name}`, which {INDEX} does not place there")));
                }
                place.insert(name.clone(), number);
            }
        }
        if let Some((name, shard)) = weight_map.iter().find(|(name, _)| !place.contains_key(*name)) {
            return Err(Error::file(folder.join(shard), format!("lacks `{name}`, which {INDEX} places there: download it again")));
        }
        Ok(Self { files, place })
    }

    fn shapes(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        self.place.iter().map(|(name, file)| Ok((name.clone(), self.files[*file].shape(name)?.to_vec()))).collect()
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        read_tensor(&self.files[self.place[name]], name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checkpoint::tests::example;

    fn exported_folder(qk_norm: bool, dual: usize) -> (tempfile::TempDir, ModelConfig, Tensors) {
        let checkpoint = example(qk_norm, dual);
        let folder = tempfile::tempdir().unwrap();
        export(&checkpoint.pipeline.model, &checkpoint.tensors, folder.path(), Dtype::F32).unwrap();
        (folder, checkpoint.pipeline.model, checkpoint.tensors)
    }

    fn edit_config(folder: &Path, key: &str, value: serde_json::Value) -> String {
        let path = folder.join(FOLDER).join(CONFIG);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json[key] = value;
        std::fs::write(&path, json.to_string()).unwrap();
        let error = import(folder).unwrap_err().to_string();
        std::fs::write(&path, text).unwrap();
        error
    }

    #[test]
    fn export_and_import_are_inverse() {
        for (qk_norm, dual) in [(false, 0), (true, 0), (true, 2), (true, 3), (false, 1)] {
            let (folder, model, tensors) = exported_folder(qk_norm, dual);
            for place in [folder.path().to_owned(), folder.path().join(FOLDER)] {
                let (found_model, found) = import(place).unwrap();
                assert_eq!(found_model, model);
                assert!(found == tensors, "qk_norm {qk_norm}, dual {dual}");
            }
        }
    }

    #[test]
    fn halves_are_swapped_in_two_layers_and_qkv_is_split() {
        let (folder, model, tensors) = exported_folder(true, 1);
        let file = SafetensorsFile::open(folder.path().join(FOLDER).join(WEIGHTS)).unwrap();
        let h = model.hidden();
        let swapped = |name: &str| [&tensors[name].data[h..], &tensors[name].data[..h]].concat();
        assert_eq!(file.f32("norm_out.linear.bias").unwrap(), swapped("final_layer.adaLN_modulation.1.bias"));
        assert_eq!(
            file.f32("transformer_blocks.2.norm1_context.linear.bias").unwrap(),
            swapped("joint_blocks.2.context_block.adaLN_modulation.1.bias")
        );
        assert_eq!(
            file.f32("transformer_blocks.1.norm1_context.linear.bias").unwrap(),
            tensors["joint_blocks.1.context_block.adaLN_modulation.1.bias"].data
        );
        assert_eq!(
            file.f32("transformer_blocks.0.attn2.to_k.bias").unwrap(),
            tensors["joint_blocks.0.x_block.attn2.qkv.bias"].data[h..2 * h]
        );
        assert_eq!(file.shape("transformer_blocks.2.attn.add_v_proj.weight").unwrap(), [h, h]);
        assert_eq!(file.metadata_value("format").unwrap(), "pt");
    }

    #[test]
    fn a_sharded_folder_is_imported() {
        let (folder, model, tensors) = exported_folder(true, 1);
        let inner = folder.path().join(FOLDER);
        let whole = inner.join(WEIGHTS);
        let (left, right) = {
            let file = SafetensorsFile::open(&whole).unwrap();
            let mut weight_map = BTreeMap::new();
            let mut shards = [BTreeMap::new(), BTreeMap::new()];
            for (i, name) in file.names().iter().enumerate() {
                weight_map.insert(name.clone(), format!("part-{}.safetensors", i % 2));
                shards[i % 2].insert(name.clone(), read_tensor(&file, name).unwrap());
            }
            let paths = [inner.join("part-0.safetensors"), inner.join("part-1.safetensors")];
            for (path, shard) in paths.iter().zip(&shards) {
                let entries = shard.iter().map(|(name, t)| Entry::floats(name, &t.shape, vec![&t.data], Dtype::F32)).collect();
                let prepared = prepare_safetensors(&BTreeMap::new(), entries).unwrap();
                write_atomically(path, |out| prepared.write(out)).unwrap();
            }
            std::fs::write(inner.join(INDEX), json!({ "metadata": {}, "weight_map": weight_map }).to_string()).unwrap();
            let [left, right] = paths;
            (left, right)
        };
        std::fs::remove_file(&whole).unwrap();
        assert!(import(folder.path()).unwrap() == (model, tensors));
        std::fs::copy(&left, &right).unwrap();
        let error = import(folder.path()).unwrap_err().to_string();
        assert!(error.contains("part-1.safetensors") && error.contains("does not place there"), "{error}");
        std::fs::remove_file(&right).unwrap();
        assert!(import(folder.path()).unwrap_err().to_string().contains("part-1.safetensors"));
        std::fs::write(inner.join(INDEX), r#"{"weight_map":{"a":"../../secret"}}"#).unwrap();
        assert!(import(folder.path()).unwrap_err().to_string().contains("not a file of its own folder"));
        std::fs::remove_file(inner.join(INDEX)).unwrap();
        assert!(import(folder.path()).unwrap_err().to_string().contains("neither"));
    }

    #[test]
    fn configurations_that_do_not_fit_are_named() {
        let (folder, _, _) = exported_folder(true, 1);
        let edit = |key: &str, value| edit_config(folder.path(), key, value);
        assert!(edit("_class_name", "FluxTransformer2DModel".into()).contains("describes a FluxTransformer2DModel"));
        assert!(edit("dual_attention_layers", json!([1])).contains("[1] are not the leading blocks"));
        assert!(edit("qk_norm", "layer_norm".into()).contains("layer_norm"));
        assert!(edit("out_channels", 3.into()).contains("out_channels = 3"));
        assert!(edit("caption_projection_dim", 3.into()).contains("caption_projection_dim = 3"));
        assert!(edit("num_layers", 0.into()).contains("model.depth"));
        assert!(edit("num_layers", "x".into()).contains("config.json"));
        assert!(edit("num_layers", 1_000_000.into()).contains("tensors for the 1000000 blocks"));
        let error = edit("num_layers", 4.into());
        assert!(error.contains("missing: transformer_blocks.2.attn.to_add_out") && error.contains("more"), "{error}");
        let error = edit("qk_norm", serde_json::Value::Null);
        assert!(error.contains("not part of this model: transformer_blocks.0.attn.norm_added_k.weight"), "{error}");
        let error = edit("pooled_projection_dim", 11.into());
        assert!(error.contains("time_text_embed.text_embedder.linear_1.weight [128, 10] instead of [128, 11]"), "{error}");
        assert!(import(folder.path().join("none")).unwrap_err().to_string().contains("config.json"));
    }

    #[test]
    fn incomplete_tensors_are_not_exported() {
        let checkpoint = example(false, 0);
        let mut tensors = checkpoint.tensors.clone();
        tensors.remove("final_layer.linear.bias");
        let folder = tempfile::tempdir().unwrap();
        let error = export(&checkpoint.pipeline.model, &tensors, folder.path(), Dtype::F32).unwrap_err().to_string();
        assert!(error.contains("missing: final_layer.linear.bias"), "{error}");
    }
}

//! Networks to and from the folder layout of the diffusers library (`SD3Transformer2DModel`).
//!
//! Three things differ from the original names: fused qkv rows are three tensors, the two halves of exactly two
//! modulations (the final layer's and the last context block's) are swapped, and everything is called differently.
//! The table `links` says which, once, for both directions. Conventions: diffusers 0.42.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::names::differences;
use super::stored::Piece;
use super::{
    Dtype, Entry, SafetensorsFile, StoredTensors, TensorViews, Tensors, parameter_shapes, prepare_safetensors, replace_folder,
    write_atomically,
};
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

/// Bytes of a shard, where nothing else is asked for: as `save_pretrained`.
pub const SHARD_BYTES: usize = 10_000_000_000;

/// How one original tensor is stored by diffusers.
enum Link {
    /// Under another name.
    Same { original: String, diffusers: String },
    /// As three tensors of a third of the rows each.
    Split { original: String, diffusers: [String; 3] },
    /// With its first and second half of the rows swapped: shift, scale becomes scale, shift.
    Swapped { original: String, diffusers: String },
}

/// Writes `folder/transformer/`, ready for `SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer")`: the weights in
/// one file of up to `shard_bytes` bytes, or in several with an index. The old folder, if there was one, is replaced as a whole.
///
/// # Errors
/// When the tensors are not those of `model`, a value does not fit `dtype`, or a file cannot be written.
pub fn export(model: &ModelConfig, tensors: &TensorViews<'_>, folder: impl AsRef<Path>, dtype: Dtype, shard_bytes: usize) -> Result<()> {
    let target = folder.as_ref().join(FOLDER);
    let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shape().to_vec())).collect();
    let wrong = differences(&parameter_shapes(model), &shapes);
    if !wrong.is_empty() {
        return Err(Error::file(&target, format!("is not written, the tensors do not fit the model: {wrong}")));
    }
    let mut entries: Vec<Entry<'_>> = links(model).into_iter().flat_map(|link| exported(link, tensors, dtype)).collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    std::fs::create_dir_all(folder.as_ref()).map_err(|source| Error::io("create", &target, source))?;
    let shards = shards(entries, shard_bytes);
    replace_folder(&target, |folder| {
        write_shards(shards, folder).map_err(|error| Error::file(&target, format!("is not written: {error}")))?;
        let config = format!("{:#}\n", config_json(model));
        write_atomically(&folder.join(CONFIG), |out| out.write_all(config.as_bytes()))
    })
}

/// Cuts the tensors into runs of up to `bytes` bytes; a larger tensor is alone.
fn shards(entries: Vec<Entry<'_>>, bytes: usize) -> Vec<Vec<Entry<'_>>> {
    let mut shards: Vec<Vec<Entry<'_>>> = vec![Vec::new()];
    let mut filled = 0_usize;
    for entry in entries {
        filled = filled.saturating_add(entry.bytes());
        match shards.last_mut() {
            Some(shard) if filled <= bytes || shard.is_empty() => shard.push(entry),
            _ => {
                filled = entry.bytes();
                shards.push(vec![entry]);
            }
        }
    }
    shards
}

fn write_shards(shards: Vec<Vec<Entry<'_>>>, folder: &Path) -> Result<()> {
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let (count, mut weight_map, mut total) = (shards.len(), BTreeMap::new(), 0);
    for (i, entries) in shards.into_iter().enumerate() {
        let name = match count {
            1 => WEIGHTS.to_owned(),
            _ => WEIGHTS.replace(".safetensors", &format!("-{:05}-of-{count:05}.safetensors", i + 1)),
        };
        total += entries.iter().map(Entry::bytes).sum::<usize>();
        weight_map.extend(entries.iter().map(|entry| (entry.name.clone(), name.clone())));
        let prepared = prepare_safetensors(&metadata, entries)?;
        write_atomically(&folder.join(&name), |out| prepared.write(out))?;
    }
    if count == 1 {
        return Ok(());
    }
    let index = format!("{:#}\n", json!({ "metadata": { "total_size": total }, "weight_map": weight_map }));
    write_atomically(&folder.join(INDEX), |out| out.write_all(index.as_bytes()))
}

/// Reads a diffusers folder into memory, as [`open`] finds it.
///
/// # Errors
/// As [`open`].
pub fn import(folder: impl AsRef<Path>) -> Result<(ModelConfig, Tensors)> {
    let (model, tensors) = open(folder)?;
    Ok((model, tensors.load()?))
}

/// Opens a diffusers folder: the `transformer` folder itself, or the pipeline's folder around it; weights in one file or sharded.
///
/// # Errors
/// When a file is missing or damaged, the architecture is not supported, or tensors are missing, left over or misshapen.
pub fn open(folder: impl AsRef<Path>) -> Result<(ModelConfig, StoredTensors)> {
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
    let shapes = parameter_shapes(&model);
    let mut tensors = StoredTensors::default();
    for link in &links {
        let original = link.original();
        let shape = shapes[original].clone();
        tensors.place(original.to_owned(), shape, weights.pieces(link)?);
    }
    Ok((model, tensors))
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

impl Link {
    fn original(&self) -> &str {
        match self {
            Self::Same { original, .. } | Self::Swapped { original, .. } | Self::Split { original, .. } => original,
        }
    }
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

fn exported<'a>(link: Link, tensors: &TensorViews<'a>, dtype: Dtype) -> Vec<Entry<'a>> {
    let tensor = &tensors[link.original()];
    let (shape, len) = (tensor.shape(), tensor.len());
    match link {
        Link::Same { diffusers, .. } => vec![Entry::view(diffusers, tensor, dtype)],
        Link::Swapped { diffusers, .. } => {
            let scale_shift = [tensor.part(len / 2..len), tensor.part(0..len / 2)].concat();
            vec![Entry::runs(diffusers, shape, scale_shift, dtype)]
        }
        Link::Split { diffusers, .. } => {
            let rows = |i: usize| tensor.part(i * (len / 3)..(i + 1) * (len / 3));
            diffusers.into_iter().enumerate().map(|(i, name)| Entry::runs(name, &third(shape), rows(i), dtype)).collect()
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
        "in_channels": model.in_channels + model.conditioning_channels,
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

fn read_config(path: &Path) -> Result<ModelConfig> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::io("read", path, source))?;
    let config: Config = serde_json::from_str(&text)
        .map_err(|error| Error::file(path, format!("{error}: it is damaged or belongs to another kind of model")))?;
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
    // What the network reads beyond what it predicts is its conditioning: nothing, a source, or a masked latent and its mask.
    let channels = config.out_channels.unwrap_or(config.in_channels);
    let conditioning_channels = config.in_channels.saturating_sub(channels);
    if channels + conditioning_channels != config.in_channels || ![0, channels, channels + 1].contains(&conditioning_channels) {
        return fail(format!(
            "out_channels = {channels} suits neither generating, editing nor inpainting with in_channels = {}",
            config.in_channels
        ));
    }
    let model = ModelConfig {
        depth: config.num_layers,
        heads: config.num_attention_heads,
        head_dim: config.attention_head_dim,
        in_channels: channels,
        patch: config.patch_size,
        context_dim: config.joint_attention_dim,
        pooled_dim: config.pooled_projection_dim,
        pos_embed_max: config.pos_embed_max_size,
        qk_norm: config.qk_norm.is_some(),
        dual_attention_blocks: config.dual_attention_layers.len(),
        conditioning_channels,
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
    files: Vec<Arc<SafetensorsFile>>,
    /// Which file holds a tensor.
    place: BTreeMap<String, usize>,
}

/// Reads the index of a sharded folder, `*.safetensors.index.json`: which file holds each tensor.
///
/// # Errors
/// When it is no such JSON, or names a file that is not beside it.
pub fn parse_index(json: &[u8]) -> Result<BTreeMap<String, String>, String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let Index { weight_map } =
        serde_json::from_slice(json).map_err(|error| format!("{error}: it is damaged or belongs to another kind of model"))?;
    let beside = |name: &str| !name.contains(['/', '\\', '\0']) && Path::new(name).file_name().is_some_and(|file| file == name);
    match weight_map.values().find(|name| !beside(name)) {
        Some(bad) => Err(format!("names the shard `{bad}`, which is not a file of its own folder")),
        None => Ok(weight_map),
    }
}

/// Reads and checks the index at `path`.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let json = std::fs::read(path).map_err(|source| Error::io("read", path, source))?;
    parse_index(&json).map_err(|cause| Error::file(path, cause))
}

impl Weights {
    fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(WEIGHTS), folder.join(INDEX));
        if single.is_file() {
            let file = Arc::new(SafetensorsFile::open(single)?);
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
        let weight_map = read_index(index)?;
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort_unstable();
        shards.dedup();
        let paths: Vec<PathBuf> = shards.iter().map(|name| folder.join(name)).collect();
        let files = paths.iter().map(|path| SafetensorsFile::open(path).map(Arc::new)).collect::<Result<Vec<_>>>()?;
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

    /// Where the numbers of an original tensor are.
    fn pieces(&self, link: &Link) -> Result<Vec<Piece>> {
        let whole = |name: &str| {
            let file = &self.files[self.place[name]];
            Ok::<_, Error>((file, 0..file.shape(name)?.iter().product::<usize>()))
        };
        match link {
            Link::Same { diffusers, .. } => whole(diffusers).map(|(file, all)| vec![Piece::of_file(file, diffusers, all, 1.0)]),
            Link::Swapped { diffusers, .. } => {
                let (file, all) = whole(diffusers)?;
                let half = all.end / 2;
                Ok([half..all.end, 0..half].map(|part| Piece::of_file(file, diffusers, part, 1.0)).into())
            }
            Link::Split { diffusers, .. } => {
                let piece = |name: &String| whole(name).map(|(file, all)| Piece::of_file(file, name, all, 1.0));
                diffusers.iter().map(piece).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::checkpoint::{read_tensor, tests::example};
    use crate::format::stored::views;

    fn exported_folder(qk_norm: bool, dual: usize) -> (tempfile::TempDir, ModelConfig, Tensors) {
        let checkpoint = example(qk_norm, dual);
        let folder = tempfile::tempdir().unwrap();
        export(&checkpoint.pipeline.model, &views(&checkpoint.tensors), folder.path(), Dtype::F32, SHARD_BYTES).unwrap();
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
        for outside in ["../../secret", "/etc/passwd", "..", "", "a/b", "a\\\\b"] {
            std::fs::write(inner.join(INDEX), format!(r#"{{"weight_map":{{"a":"{outside}"}}}}"#)).unwrap();
            assert!(import(folder.path()).unwrap_err().to_string().contains("not a file of its own folder"), "{outside}");
        }
        for bad in ["", "{", "[]", r#"{"weight_map":[]}"#, r#"{"weight_map":{"a":1}}"#] {
            std::fs::write(inner.join(INDEX), bad).unwrap();
            let error = import(folder.path()).unwrap_err().to_string();
            assert!(error.contains("index.json") && error.contains("damaged") && !error.contains('\n'), "{error}");
        }
        std::fs::remove_file(inner.join(INDEX)).unwrap();
        assert!(import(folder.path()).unwrap_err().to_string().contains("neither"));
    }

    #[test]
    fn shards_are_written_and_read_and_replace_what_was_there() {
        let (folder, model, tensors) = exported_folder(true, 1);
        let inner = folder.path().join(FOLDER);
        let files = || {
            let mut names: Vec<_> = std::fs::read_dir(&inner).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(files(), [CONFIG, WEIGHTS]);
        let bytes = std::fs::metadata(inner.join(WEIGHTS)).unwrap().len() as usize;
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32] {
            export(&model, &views(&tensors), folder.path(), dtype, bytes / 3).unwrap();
            assert!(import(folder.path()).unwrap() == (model.clone(), tensors.clone()), "{dtype:?}");
            assert_eq!(files().len() > 4, dtype == Dtype::F32, "{:?}", files());
        }
        assert!(files().contains(&"diffusion_pytorch_model-00001-of-00004.safetensors".to_owned()), "{:?}", files());
        let index: serde_json::Value = serde_json::from_slice(&std::fs::read(inner.join(INDEX)).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 4 * tensors.values().map(|t| t.data.len()).sum::<usize>());
        export(&model, &views(&tensors), folder.path(), Dtype::F32, 1).unwrap();
        assert_eq!(files().len(), 2 + index["weight_map"].as_object().unwrap().len(), "a tensor a file");
        export(&model, &views(&tensors), folder.path(), Dtype::F32, SHARD_BYTES).unwrap();
        assert_eq!(files(), [CONFIG, WEIGHTS]);
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
        let error = export(&checkpoint.pipeline.model, &views(&tensors), folder.path(), Dtype::F32, SHARD_BYTES).unwrap_err().to_string();
        assert!(error.contains("missing: final_layer.linear.bias"), "{error}");
    }
}

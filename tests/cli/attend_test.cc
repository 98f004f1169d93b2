// SPDX-License-Identifier: Apache-2.0
// `attend` end to end: what goes in by files, flags and random fills, and what comes out.
#include <cmath>
#include <cstring>

#include "cli/cli_process.h"
#include "dtype.h"
#include "io/npy.h"
#include "philox.h"

namespace attentile::cli_test {
namespace {

double value_at(const io::Tensor& tensor, int64_t index) {
  return load_as_double(tensor.buffer.data(), tensor.dtype, index);
}

// A tensor of small values that depend on `salt`.
io::Tensor make(DType dtype, const std::vector<int64_t>& shape, int salt) {
  io::Tensor tensor = std::move(*io::make_tensor(dtype, shape));
  for (int64_t i = 0; i < tensor.num_elements(); ++i) {
    const double value = std::sin(0.37 * static_cast<double>(i) + salt);
    store_from_double(tensor.buffer.data(), dtype, i, value);
  }
  return tensor;
}

io::Tensor make_integers(DType dtype, const std::vector<int64_t>& shape,
                         const std::vector<int32_t>& values) {
  io::Tensor tensor = std::move(*io::make_tensor(dtype, shape));
  for (size_t i = 0; i < values.size(); ++i) {
    std::memcpy(tensor.buffer.data() + i * static_cast<size_t>(size_of(dtype)), &values[i],
                static_cast<size_t>(size_of(dtype)));
  }
  return tensor;
}

TensorView view(const io::Tensor& tensor) {
  return *tensor.view();
}

TensorView swapped(const io::Tensor& tensor) {
  TensorView swapped_view = view(tensor);
  std::swap(swapped_view.shape[1], swapped_view.shape[2]);
  std::swap(swapped_view.stride[1], swapped_view.stride[2]);
  return swapped_view;
}

void expect_near(const io::Tensor& a, const io::Tensor& b, double tolerance) {
  ASSERT_EQ(a.shape, b.shape);
  for (int64_t i = 0; i < a.num_elements(); ++i) {
    ASSERT_NEAR(value_at(a, i), value_at(b, i), tolerance) << "element " << i;
  }
}

class AttendTest : public CliTest {
 protected:
  void SetUp() override {
    CliTest::SetUp();
    save_good(DType::kFloat32, "in.safetensors");
  }

  void save_good(DType dtype, const std::string& name) {
    q_ = make(dtype, {2, 9, 4, 16}, 1);
    k_ = make(dtype, {2, 13, 2, 16}, 2);
    v_ = make(dtype, {2, 13, 2, 16}, 3);
    dout_ = make(dtype, {2, 9, 4, 16}, 4);
    save(name, good_views());
  }

  std::map<std::string, TensorView> good_views() const {
    return {{"q", view(q_)}, {"k", view(k_)}, {"v", view(v_)}, {"dout", view(dout_)}};
  }

  io::Tensor q_, k_, v_, dout_;
};

TEST_F(AttendTest, WritesOutAndLse) {
  good("attend {dir}/in.safetensors --out {dir}/o.safetensors");
  const io::TensorMap results = load("o.safetensors");
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results.at("out").shape, (std::vector<int64_t>{2, 9, 4, 16}));
  EXPECT_EQ(results.at("lse").shape, (std::vector<int64_t>{2, 4, 9}));
  EXPECT_EQ(results.at("lse").dtype, DType::kFloat32);
}

TEST_F(AttendTest, BackwardWritesGradients) {
  auto views = good_views();
  const io::Tensor bias = make(DType::kFloat32, {4, 9, 13}, 5);
  const io::Tensor sink = make(DType::kFloat32, {4}, 6);
  const io::Tensor dlse = make(DType::kFloat32, {2, 4, 9}, 7);
  views["bias"] = view(bias);
  views["sink"] = view(sink);
  views["dlse"] = view(dlse);
  save("all.safetensors", views);
  good("attend {dir}/all.safetensors --out {dir}/o.safetensors --backward --causal --verify");
  const io::TensorMap results = load("o.safetensors");
  EXPECT_EQ(results.at("dq").shape, q_.shape);
  EXPECT_EQ(results.at("dk").shape, k_.shape);
  EXPECT_EQ(results.at("dv").shape, v_.shape);
  EXPECT_EQ(results.at("dbias").shape, bias.shape);
  EXPECT_EQ(results.at("dsink").shape, sink.shape);
}

TEST_F(AttendTest, NpyFilesGiveTheSameBits) {
  for (const auto& [name, tensor_view] : good_views()) {
    ASSERT_TRUE(io::write_npy(path(name + ".npy"), tensor_view).ok());
  }
  good("attend {dir}/in.safetensors --out {dir}/a.safetensors --backward --window 3,-1");
  good(
      "attend --q {dir}/q.npy --k {dir}/k.npy --v {dir}/v.npy --dout {dir}/dout.npy "
      "--out {dir}/b.safetensors --backward --window 3,-1");
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
}

TEST_F(AttendTest, AtomicDqGivesTheSameBitsOnTheCpu) {
  const std::string line = "attend {dir}/in.safetensors --backward --causal --out {dir}/";
  good(line + "a.safetensors");
  const std::string facts = good(line + "b.safetensors --atomic-dq --json");
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
  EXPECT_NE(facts.find("\"atomic_dq\": true"), std::string::npos) << facts;
}

TEST_F(AttendTest, OptionalTensorsMayComeByFlag) {
  const io::Tensor sink = make(DType::kFloat32, {4}, 6);
  ASSERT_TRUE(io::write_npy(path("sink.npy"), view(sink)).ok());
  auto views = good_views();
  views["sink"] = view(sink);
  save("with.safetensors", views);
  good("attend {dir}/with.safetensors --out {dir}/a.safetensors");
  good("attend {dir}/in.safetensors --sink {dir}/sink.npy --out {dir}/b.safetensors");
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
}

TEST_F(AttendTest, LayoutsGiveTheSameBits) {
  save("bhsd.safetensors",
       {{"q", swapped(q_)}, {"k", swapped(k_)}, {"v", swapped(v_)}, {"dout", swapped(dout_)}});
  good("attend {dir}/in.safetensors --out {dir}/a.safetensors --backward --causal");
  good("attend {dir}/bhsd.safetensors --out {dir}/b.safetensors --backward --causal --layout bhsd");
  io::TensorMap swapped_results = load("b.safetensors");
  EXPECT_EQ(swapped_results.at("out").shape, (std::vector<int64_t>{2, 4, 9, 16}));
  save("back.safetensors", {{"out", swapped(swapped_results.at("out"))},
                            {"dq", swapped(swapped_results.at("dq"))},
                            {"dk", swapped(swapped_results.at("dk"))},
                            {"dv", swapped(swapped_results.at("dv"))}});
  const io::TensorMap expected = load("a.safetensors");
  const io::TensorMap results = load("back.safetensors");
  for (const auto& [name, tensor] : results) EXPECT_TRUE(same_bytes(tensor, expected.at(name)));
  EXPECT_TRUE(same_bytes(swapped_results.at("lse"), expected.at("lse")));
}

TEST_F(AttendTest, DTypeRoundsTheInputsFirst) {
  for (const auto& [word, dtype] :
       {std::pair{"f16", DType::kFloat16}, {"bf16", DType::kBFloat16}}) {
    save_good(DType::kFloat32, "wide.safetensors");
    std::map<std::string, io::Tensor> rounded;
    std::map<std::string, TensorView> views;
    for (const auto& [name, tensor_view] : good_views()) {
      io::Tensor tensor = std::move(
          *io::make_tensor(dtype, {tensor_view.shape, tensor_view.shape + tensor_view.rank}));
      for (int64_t i = 0; i < tensor.num_elements(); ++i) {
        store_from_double(tensor.buffer.data(), dtype, i,
                          load_as_double(tensor_view.data, DType::kFloat32, i));
      }
      views[name] = view(rounded[name] = std::move(tensor));
    }
    save("narrow.safetensors", views);
    good(
        std::string("attend {dir}/wide.safetensors --out {dir}/a.safetensors --backward --dtype ") +
        word);
    good("attend {dir}/narrow.safetensors --out {dir}/b.safetensors --backward");
    EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
    EXPECT_EQ(load("a.safetensors").at("out").dtype, dtype);
  }
}

TEST_F(AttendTest, Float64KeepsLseInFloat64) {
  good("attend {dir}/in.safetensors --out {dir}/o.safetensors --dtype f64 --backward");
  EXPECT_EQ(load("o.safetensors").at("lse").dtype, DType::kFloat64);
  EXPECT_EQ(load("o.safetensors").at("dq").dtype, DType::kFloat64);
}

TEST_F(AttendTest, MaxHeadsKeepsTheFirstHeads) {
  good("attend {dir}/in.safetensors --out {dir}/all.safetensors --causal");
  for (int64_t kept : {1, 2}) {
    good("attend {dir}/in.safetensors --out {dir}/few.safetensors --causal --max-heads " +
         std::to_string(kept));
    const io::TensorMap all = load("all.safetensors");
    const io::TensorMap few = load("few.safetensors");
    ASSERT_EQ(few.at("out").shape, (std::vector<int64_t>{2, 9, kept, 16}));
    for (int64_t row = 0; row < 2 * 9; ++row) {
      const std::byte* expected = all.at("out").buffer.data() + row * 4 * 16 * 4;
      const std::byte* got = few.at("out").buffer.data() + row * kept * 16 * 4;
      EXPECT_EQ(std::memcmp(got, expected, static_cast<size_t>(kept) * 16 * 4), 0);
    }
  }
}

TEST_F(AttendTest, KeepMaskIsPhilox) {
  good(
      "attend {dir}/in.safetensors --out {dir}/o.safetensors --causal --dropout 0.3 --seed 11 "
      "--offset 7 --keep-mask");
  const io::TensorMap results = load("o.safetensors");
  const io::Tensor& keep = results.at("keep");
  ASSERT_EQ(keep.shape, (std::vector<int64_t>{2, 4, 9, 13}));
  ASSERT_EQ(keep.dtype, DType::kUInt8);
  Dropout dropout = make_dropout(0.3, 11, 7);
  dropout.num_heads_q = 4;
  int64_t index = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 4; ++h) {
      for (int64_t i = 0; i < 9; ++i) {
        for (int64_t j = 0; j < 13; ++j) {
          ASSERT_EQ(value_at(keep, index++), dropout.keep(b, h, i, j) ? 1 : 0);
        }
      }
    }
  }
}

TEST_F(AttendTest, BlockMaskEqualsTheSameMask) {
  const io::Tensor block_mask =
      make_integers(DType::kUInt8, {1, 3, 3}, {1, 0, 1, 0, 1, 1, 1, 1, 0});
  io::Tensor mask = std::move(*io::make_tensor(DType::kUInt8, {9, 13}));
  for (int64_t i = 0; i < 9; ++i) {
    for (int64_t j = 0; j < 13; ++j) {
      mask.buffer.data()[i * 13 + j] = block_mask.buffer.data()[i / 4 * 3 + j / 5];
    }
  }
  auto views = good_views();
  views["block_mask"] = view(block_mask);
  save("block.safetensors", views);
  views.erase("block_mask");
  views["mask"] = view(mask);
  save("mask.safetensors", views);
  good(
      "attend {dir}/block.safetensors --out {dir}/a.safetensors --block-size 4,5 --backward "
      "--verify");
  good("attend {dir}/mask.safetensors --out {dir}/b.safetensors --backward --verify");
  for (const char* name : {"out", "dq", "dk", "dv"}) {
    expect_near(load("a.safetensors").at(name), load("b.safetensors").at(name), 1e-5);
  }
}

TEST_F(AttendTest, CausalTopLeftIsShortForAlignment) {
  good("attend {dir}/in.safetensors --out {dir}/a.safetensors --causal=top_left");
  good("attend {dir}/in.safetensors --out {dir}/b.safetensors --causal --alignment top_left");
  good("attend {dir}/in.safetensors --out {dir}/c.safetensors --window -1,0 --position-offset 0");
  good("attend {dir}/in.safetensors --out {dir}/d.safetensors --causal");
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("c.safetensors")));
  EXPECT_NE(read_file(path("a.safetensors")), read_file(path("d.safetensors")));
}

TEST_F(AttendTest, ValuesMayBeginWithMinus) {
  good(
      "attend {dir}/in.safetensors --out {dir}/a.safetensors --scale -0.1 --window -1,4 "
      "--position-offset -3");
  good(
      "attend {dir}/in.safetensors --out {dir}/b.safetensors --scale=-0.1 --window=-1,4 "
      "--position-offset=-3");
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
}

TEST_F(AttendTest, ScaleZeroWeighsUniformly) {
  good("attend {dir}/in.safetensors --out {dir}/o.safetensors --scale 0");
  const io::TensorMap results = load("o.safetensors");
  const io::Tensor& lse = results.at("lse");
  for (int64_t i = 0; i < lse.num_elements(); ++i)
    EXPECT_NEAR(value_at(lse, i), std::log(13), 1e-6);
}

TEST_F(AttendTest, AlgorithmsAgree) {
  good("attend {dir}/in.safetensors --out {dir}/a.safetensors --backward --algorithm reference");
  for (const char* algorithm : {"auto", "standard", "flash1", "flash2"}) {
    good(std::string("attend {dir}/in.safetensors --out {dir}/b.safetensors --backward --verify "
                     "--algorithm ") +
         algorithm);
    for (const char* name : {"out", "lse", "dq", "dk", "dv"}) {
      expect_near(load("a.safetensors").at(name), load("b.safetensors").at(name), 1e-5);
    }
  }
}

TEST_F(AttendTest, ThreadsDoNotChangeBits) {
  good("attend {dir}/in.safetensors --out {dir}/a.safetensors --backward --threads 1");
  good("attend {dir}/in.safetensors --out {dir}/b.safetensors --backward --threads 7");
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
}

TEST_F(AttendTest, VarlenEqualsBatch) {
  save("packed.safetensors", {});
  const auto packed = [](const io::Tensor& tensor) {
    return contiguous_view(tensor.buffer.data(), tensor.dtype,
                           {tensor.shape[0] * tensor.shape[1], tensor.shape[2], tensor.shape[3]});
  };
  const io::Tensor cu_q = make_integers(DType::kInt32, {3}, {0, 9, 18});
  const io::Tensor cu_k = make_integers(DType::kInt32, {3}, {0, 13, 26});
  save("packed.safetensors", {{"q", packed(q_)},
                              {"k", packed(k_)},
                              {"v", packed(v_)},
                              {"dout", packed(dout_)},
                              {"cu_seqlens_q", view(cu_q)},
                              {"cu_seqlens_k", view(cu_k)}});
  good("attend {dir}/packed.safetensors --out {dir}/a.safetensors --causal --backward --verify");
  good("attend {dir}/in.safetensors --out {dir}/b.safetensors --causal --backward --verify");
  const io::TensorMap a = load("a.safetensors");
  const io::TensorMap b = load("b.safetensors");
  EXPECT_EQ(a.at("lse").shape, (std::vector<int64_t>{4, 18}));
  for (const char* name : {"out", "dq", "dk", "dv"}) {
    EXPECT_EQ(
        std::memcmp(a.at(name).buffer.data(), b.at(name).buffer.data(), b.at(name).buffer.size()),
        0)
        << name;
  }
}

TEST_F(AttendTest, PackedQueriesMayMeetBatchedKeys) {
  const TensorView q = contiguous_view(q_.buffer.data(), q_.dtype, {18, 4, 16});
  const io::Tensor cu_q = make_integers(DType::kInt32, {3}, {0, 9, 18});
  save("mixed.safetensors",
       {{"q", q}, {"k", view(k_)}, {"v", view(v_)}, {"cu_seqlens_q", view(cu_q)}});
  good("attend {dir}/mixed.safetensors --out {dir}/a.safetensors --causal --verify");
  good("attend {dir}/in.safetensors --out {dir}/b.safetensors --causal");
  const io::TensorMap a = load("a.safetensors");
  EXPECT_EQ(a.at("out").shape, (std::vector<int64_t>{18, 4, 16}));
  EXPECT_EQ(std::memcmp(a.at("out").buffer.data(), load("b.safetensors").at("out").buffer.data(),
                        a.at("out").buffer.size()),
            0);
}

// No error measures a NaN that the oracle has too, so their number is told.
TEST_F(AttendTest, VerifyTellsHowManyElementsAreNaN) {
  const float nan = std::nanf("");
  std::memcpy(q_.buffer.data(), &nan, sizeof nan);
  save("nan.safetensors", good_views());
  const std::string line = "attend {dir}/nan.safetensors --out {dir}/o.safetensors --verify";
  const std::string table = good(line);
  EXPECT_NE(table.find("pass; 16 of 1152 elements are NaN here and by the oracle"),
            std::string::npos)
      << table;
  EXPECT_NE(table.find("pass; 1 of 72 elements are NaN here and by the oracle"), std::string::npos);
  EXPECT_NE(good(line + " --json").find("\"nan_elements\": 16"), std::string::npos);
  EXPECT_EQ(good("attend {dir}/in.safetensors --out {dir}/o.safetensors --verify").find("NaN"),
            std::string::npos);
}

TEST_F(AttendTest, PagesEqualContiguousKeys) {
  // One sequence of 7 keys in pages of 4, stored backwards.
  const io::Tensor q = make(DType::kFloat32, {1, 3, 2, 8}, 1);
  const io::Tensor k = make(DType::kFloat32, {1, 8, 1, 8}, 2);
  const io::Tensor v = make(DType::kFloat32, {1, 8, 1, 8}, 3);
  const io::Tensor used = make_integers(DType::kInt32, {1}, {7});
  save("plain.safetensors",
       {{"q", view(q)}, {"k", view(k)}, {"v", view(v)}, {"seqused_k", view(used)}});
  const auto pages = [](const io::Tensor& tensor) {
    io::Tensor paged = std::move(*io::make_tensor(DType::kFloat32, {2, 4, 1, 8}));
    std::memcpy(paged.buffer.data(), tensor.buffer.data() + 128, 128);
    std::memcpy(paged.buffer.data() + 128, tensor.buffer.data(), 128);
    return paged;
  };
  const io::Tensor paged_k = pages(k);
  const io::Tensor paged_v = pages(v);
  const io::Tensor table = make_integers(DType::kInt32, {1, 2}, {1, 0});
  save("paged.safetensors", {{"q", view(q)},
                             {"k", view(paged_k)},
                             {"v", view(paged_v)},
                             {"seqused_k", view(used)},
                             {"block_table", view(table)}});
  good("attend {dir}/plain.safetensors --out {dir}/a.safetensors --causal");
  good("attend {dir}/paged.safetensors --out {dir}/b.safetensors --causal --verify");
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
}

// Three pages of 4 hold 12 keys, but the longer sequence has 7: that is the width of the mask.
TEST_F(AttendTest, KeepMaskOfPagesIsAsWideAsTheLongestSequence) {
  const io::Tensor q = make(DType::kFloat32, {2, 3, 2, 8}, 1);
  const io::Tensor k = make(DType::kFloat32, {6, 4, 1, 8}, 2);
  const io::Tensor v = make(DType::kFloat32, {6, 4, 1, 8}, 3);
  const io::Tensor used = make_integers(DType::kInt32, {2}, {7, 5});
  const io::Tensor table = make_integers(DType::kInt32, {2, 3}, {1, 0, 2, 5, 3, 4});
  save("paged.safetensors", {{"q", view(q)},
                             {"k", view(k)},
                             {"v", view(v)},
                             {"seqused_k", view(used)},
                             {"block_table", view(table)}});
  good(
      "attend {dir}/paged.safetensors --out {dir}/o.safetensors --dropout 0.3 --seed 11 "
      "--keep-mask --verify");
  const io::TensorMap results = load("o.safetensors");
  const io::Tensor& keep = results.at("keep");
  ASSERT_EQ(keep.shape, (std::vector<int64_t>{2, 2, 3, 7}));
  Dropout dropout = make_dropout(0.3, 11, 0);
  dropout.num_heads_q = 2;
  int64_t index = 0;
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t h = 0; h < 2; ++h) {
      for (int64_t i = 0; i < 3; ++i) {
        for (int64_t j = 0; j < 7; ++j) {
          ASSERT_EQ(value_at(keep, index++), dropout.keep(b, h, i, j) ? 1 : 0);
        }
      }
    }
  }
}

TEST_F(AttendTest, ReplacesAnExistingOutput) {
  write_file(path("o.safetensors"), "old");
  good("attend {dir}/in.safetensors --out {dir}/o.safetensors");
  EXPECT_EQ(load("o.safetensors").size(), 2u);
}

TEST_F(AttendTest, OtherTensorsAreIgnored) {
  auto views = good_views();
  const io::Tensor other = make(DType::kFloat32, {3}, 9);
  views["hidden_states"] = view(other);
  save("more.safetensors", views);
  good("attend {dir}/in.safetensors --out {dir}/a.safetensors");
  good("attend {dir}/more.safetensors --out {dir}/b.safetensors");
  EXPECT_EQ(read_file(path("a.safetensors")), read_file(path("b.safetensors")));
}

TEST_F(AttendTest, RandomFillIsTheDocumentedGenerator) {
  // One key: out is v. The values come from an independent implementation of random_fill.h.
  good("attend --random 1,1,1,1,1,4 --fill-seed 42 --dtype f64 --out {dir}/o.safetensors");
  const io::TensorMap results = load("o.safetensors");
  const io::Tensor& out = results.at("out");
  const double expected[] = {0.3415952178115175, -1.575987160244821, 0.7825146706755646,
                             0.4119304998029093};
  for (int64_t i = 0; i < 4; ++i) EXPECT_DOUBLE_EQ(value_at(out, i), expected[i]);
}

TEST_F(AttendTest, RandomFillIsStandardNormal) {
  good("attend --random 1,4096,1,1,1,8 --algorithm flash2 --out {dir}/o.safetensors");
  good("attend --random 1,1,1,64,64,512 --out {dir}/o.safetensors --dtype f64");
  const io::TensorMap results = load("o.safetensors");
  const io::Tensor& v = results.at("out");
  double sum = 0;
  double squares = 0;
  const auto count = static_cast<double>(v.num_elements());
  for (int64_t i = 0; i < v.num_elements(); ++i) {
    sum += value_at(v, i);
    squares += value_at(v, i) * value_at(v, i);
  }
  EXPECT_NEAR(sum / count, 0, 0.03);
  EXPECT_NEAR(squares / count, 1, 0.04);
}

TEST_F(AttendTest, EmptyProblemsSucceed) {
  for (const char* shape : {"0,4,4,1,1,8", "1,0,4,1,1,8", "1,4,0,1,1,8", "1,4,4,0,0,8"}) {
    good(std::string("attend --backward --out {dir}/o.safetensors --random ") + shape);
    EXPECT_EQ(load("o.safetensors").count("dv"), 1u) << shape;
  }
}

TEST_F(AttendTest, TooLittleMemoryIsStatusThree) {
  Outcome outcome = cli("attend --random 1,1048576,1048576,262144,262144,512");
  EXPECT_EQ(outcome.status, 3);
  EXPECT_TRUE(outcome.err.starts_with("--random: needs 1.50 PiB of memory, but ")) << outcome.err;
  outcome = cli("explain --shape 1,1048576,1048576,262144,262144,512");
  EXPECT_EQ(outcome.status, 3);
  EXPECT_TRUE(outcome.err.starts_with("--shape: needs 1.50 PiB of memory, but ")) << outcome.err;
}

}  // namespace
}  // namespace attentile::cli_test

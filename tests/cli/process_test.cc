// SPDX-License-Identifier: Apache-2.0
// The program among others: on a terminal, interrupted, and under limits of the system.
#include "cli/cli_process.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define ATTENTILE_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define ATTENTILE_TEST_SANITIZED 1
#endif
#endif

namespace attentile::cli_test {
namespace {

class ProcessTest : public CliTest {
 protected:
  // Interrupts a run that takes minutes once its bar is on the terminal. It must say so, after
  // taking the bar away, and leave nothing.
  void interrupt_at_bar(const std::string& line, const std::string& label) const {
    const Outcome outcome = cli(line, {.interrupt_at = label + " ["});
    EXPECT_EQ(outcome.status, 130);
    EXPECT_NE(outcome.err.find("\r\x1b[K" + label + " ["), std::string::npos) << outcome.err;
    EXPECT_TRUE(outcome.err.ends_with("\r\x1b[Kinterrupted: nothing was written\r\n"))
        << outcome.err;
    EXPECT_TRUE(std::filesystem::is_empty(directory_));
  }
};

TEST_F(ProcessTest, InterruptedAttendLeavesNoOutput) {
  interrupt_at_bar(
      "attend --random 1,131072,131072,1,1,64 --algorithm flash2 --threads 1 --out "
      "{dir}/o.safetensors",
      "forward");
}

TEST_F(ProcessTest, InterruptedEmulatorLeavesNoOutput) {
  interrupt_at_bar(
      "attend --random 1,16384,16384,1,1,64 --dtype bf16 --device emulator --out "
      "{dir}/o.safetensors",
      "forward");
}

TEST_F(ProcessTest, BenchShowsABarWithinACase) {
  interrupt_at_bar("bench --shape 1,131072,131072,1,1,64 --threads 1 --json {dir}/b.json", "bench");
}

TEST_F(ProcessTest, ExplainShowsABar) {
  interrupt_at_bar("explain --shape 1,30000,30000,1,1,64 --svg {dir}/a.svg", "explain");
}

TEST_F(ProcessTest, FileSizeLimitIsStatusThree) {
  const Outcome outcome =
      cli("attend --random 1,128,128,4,4,64 --out {dir}/o.safetensors", {.limit = "-f 8"});
  EXPECT_EQ(outcome.status, 3);
  EXPECT_EQ(outcome.err, path("o.safetensors") + ": the file cannot be written: File too large\n");
  EXPECT_TRUE(std::filesystem::is_empty(directory_));
}

TEST_F(ProcessTest, MeasureWithoutMemoryIsStatusThree) {
#if defined(ATTENTILE_TEST_SANITIZED)
  GTEST_SKIP() << "a sanitizer needs more addresses than such a limit leaves";
#endif
  const Outcome outcome = cli("info --measure", {.limit = "-v 130000"});
  EXPECT_EQ(outcome.status, 3);
  EXPECT_EQ(outcome.out, "");
  EXPECT_TRUE(outcome.err.starts_with("--measure: asked for ")) << outcome.err;
  EXPECT_NE(outcome.err.find("; the system gave 0 bytes\n"), std::string::npos) << outcome.err;
}

}  // namespace
}  // namespace attentile::cli_test

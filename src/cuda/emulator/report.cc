// SPDX-License-Identifier: Apache-2.0
#include "cuda/emulator/report.h"

namespace attentile::cuda::emulator {
namespace {

std::string place(const Dim3& block) {
  return "(" + std::to_string(block.x) + "," + std::to_string(block.y) + "," +
         std::to_string(block.z) + ")";
}
std::string place(const ThreadName& thread) {
  return "thread " + std::to_string(thread.thread) + " of block " + place(thread.block);
}
std::string place(const SourceLine& line) {
  return line.file + ":" + std::to_string(line.line);
}

// What the earlier access was, where a finding has one.
const char* earlier(Fault fault) {
  switch (fault) {
    case Fault::kWriteAfterRead: return "not ordered after the read";
    case Fault::kInFlight: return "while the copy is in flight, issued";
    case Fault::kDivergentBarrier: return "other warps are";
    case Fault::kBarrierMismatch: return "other participants";
    default: return "not ordered after the write";
  }
}

}  // namespace

const char* name_of(Fault fault) {
  switch (fault) {
    case Fault::kUninitialisedRead: return "Read of uninitialised memory";
    case Fault::kOutOfBounds: return "Access out of bounds";
    case Fault::kMisaligned: return "Misaligned access";
    case Fault::kReadAfterWrite: return "Race (read after write)";
    case Fault::kWriteAfterRead: return "Race (write after read)";
    case Fault::kWriteAfterWrite: return "Race (write after write)";
    case Fault::kInFlight: return "Access to a cp.async in flight";
    case Fault::kNeverWaited: return "cp.async never waited for";
    case Fault::kReadOnlyWritten: return "Write to read-only memory";
    case Fault::kReadOnlyLoad: return "Read-only load of memory written in this launch";
    case Fault::kDivergence: return "Divergent collective";
    case Fault::kInvalidOperand: return "Invalid operand";
    case Fault::kBarrierMismatch: return "Barrier with different thread counts";
    case Fault::kBarrierReentered: return "Barrier entered twice in one phase";
    case Fault::kBarrierUnfinished: return "Barrier left in the middle of a phase";
    case Fault::kDivergentBarrier: return "Block barrier reached on different lines";
    case Fault::kDeadlock: return "Deadlock";
    case Fault::kEndlessLoop: return "Endless loop";
  }
  return "";
}

void Counters::add(const Counters& other) {
  global_read_bytes += other.global_read_bytes;
  global_written_bytes += other.global_written_bytes;
  global_read_sectors += other.global_read_sectors;
  global_written_sectors += other.global_written_sectors;
  shared_wavefronts += other.shared_wavefronts;
  bank_conflicts += other.bank_conflicts;
  copies += other.copies;
  mma += other.mma;
  ex2 += other.ex2;
  barriers += other.barriers;
  collectives += other.collectives;
}

void Report::add(const Report& later) {
  findings.insert(findings.end(), later.findings.begin(), later.findings.end());
  total.add(later.total);
  for (const auto& [line, counters] : later.lines) lines[line].add(counters);
  for (const auto& [kernel, counters] : later.kernels) kernels[kernel].add(counters);
  switches += later.switches;
  instructions += later.instructions;
  completed = completed && later.completed;
}

const Finding* Report::find(Fault fault) const {
  for (const Finding& finding : findings) {
    if (finding.fault == fault) return &finding;
  }
  return nullptr;
}

std::string to_string(const Finding& finding) {
  std::string text = std::string("========= ") + name_of(finding.fault);
  if (finding.space == Space::kShared) text += " in shared memory";
  if (finding.space == Space::kGlobal) text += " in global memory";
  if (finding.where.line != 0) text += " at " + place(finding.where);
  text += "\n";
  if (finding.fault != Fault::kDeadlock) {
    text += "=========     by " + place(finding.thread);
    if (finding.bytes != 0) {
      text += ", " + std::to_string(finding.bytes) + " bytes at offset " +
              std::to_string(finding.address);
    }
    text += "\n";
  }
  if (finding.other.line != 0) {
    text += std::string("=========     ") + earlier(finding.fault) + " at " + place(finding.other) +
            " by " + place(finding.other_thread) + "\n";
  }
  size_t begin = 0;
  while (begin < finding.detail.size()) {
    const size_t end = finding.detail.find('\n', begin);
    text += "=========     " + finding.detail.substr(begin, end - begin) + "\n";
    if (end == std::string::npos) break;
    begin = end + 1;
  }
  if (finding.count > 1) text += "=========     " + std::to_string(finding.count) + " times\n";
  return text;
}

std::string Report::text() const {
  std::string text;
  uint64_t occurrences = 0;
  for (const Finding& finding : findings) {
    text += to_string(finding);
    occurrences += finding.count;
  }
  text += "========= " + std::to_string(findings.size()) + " findings, " +
          std::to_string(occurrences) + " occurrences" +
          (completed ? "" : "; the launch did not complete") + "\n";
  return text;
}

}  // namespace attentile::cuda::emulator

// Every kernel that the library has, once: the switches and the query `luma_instances` are made of
// these rows, so that neither can know a kernel that the other lacks.
#pragma once

#include "native.h"

// ROW(rule, kind of the first moment, kind of the second, class that stores them)

// Rules that go element by element.
#define LUMA_ELEMENTWISE(ROW)                                                 \
  ROW(kAdamW, kLogSigned, kLogRoot, LogGridPair)                              \
  ROW(kAdamW, kPlain, kPlain, SeparatePair<PlainMoment, PlainMoment>)         \
  ROW(kAdamW, kPlain, kBFloat, SeparatePair<PlainMoment, SecondBFloat>)       \
  ROW(kAdamW, kPlain, kRoot, SeparatePair<PlainMoment, RootMoment>)           \
  ROW(kAdamW, kPlain, kLog, SeparatePair<PlainMoment, LogMoment>)             \
  ROW(kAdamW, kBFloat, kPlain, SeparatePair<FirstBFloat, PlainMoment>)        \
  ROW(kAdamW, kBFloat, kBFloat, SeparatePair<FirstBFloat, SecondBFloat>)      \
  ROW(kAdamW, kBFloat, kRoot, SeparatePair<FirstBFloat, RootMoment>)          \
  ROW(kAdamW, kBFloat, kLog, SeparatePair<FirstBFloat, LogMoment>)            \
  ROW(kAdamW, kLogSigned, kPlain, SeparatePair<FirstGrid, PlainMoment>)       \
  ROW(kAdamW, kLogSigned, kBFloat, SeparatePair<FirstGrid, SecondBFloat>)     \
  ROW(kAdamW, kLogSigned, kRoot, SeparatePair<FirstGrid, RootMoment>)         \
  ROW(kAdamW, kLogSigned, kLog, SeparatePair<FirstGrid, LogMoment>)           \
  ROW(kAdamW, kFp8, kPlain, SeparatePair<FirstFp8, PlainMoment>)              \
  ROW(kAdamW, kFp8, kBFloat, SeparatePair<FirstFp8, SecondBFloat>)            \
  ROW(kAdamW, kFp8, kRoot, SeparatePair<FirstFp8, RootMoment>)                \
  ROW(kAdamW, kFp8, kLog, SeparatePair<FirstFp8, LogMoment>)                  \
  ROW(kAdamW, kTable, kPlain, SeparatePair<TableMoment, PlainMoment>)         \
  ROW(kAdamW, kTable, kBFloat, SeparatePair<TableMoment, SecondBFloat>)       \
  ROW(kAdamW, kTable, kRoot, SeparatePair<TableMoment, RootMoment>)           \
  ROW(kAdamW, kTable, kLog, SeparatePair<TableMoment, LogMoment>)             \
  ROW(kFamily, kLogSigned, kLogRoot, FamilyPair<LogGridPair>)                         \
  ROW(kFamily, kPlain, kPlain, FamilyPair<SeparatePair<PlainMoment, PlainMoment>>)    \
  ROW(kFamily, kPlain, kBFloat, FamilyPair<SeparatePair<PlainMoment, SecondBFloat>>)  \
  ROW(kFamily, kPlain, kRoot, FamilyPair<SeparatePair<PlainMoment, RootMoment>>)      \
  ROW(kFamily, kPlain, kLog, FamilyPair<SeparatePair<PlainMoment, LogMoment>>)        \
  ROW(kFamily, kBFloat, kPlain, FamilyPair<SeparatePair<FirstBFloat, PlainMoment>>)   \
  ROW(kFamily, kBFloat, kBFloat, FamilyPair<SeparatePair<FirstBFloat, SecondBFloat>>) \
  ROW(kFamily, kBFloat, kRoot, FamilyPair<SeparatePair<FirstBFloat, RootMoment>>)     \
  ROW(kFamily, kBFloat, kLog, FamilyPair<SeparatePair<FirstBFloat, LogMoment>>)       \
  ROW(kFamily, kLogSigned, kPlain, FamilyPair<SeparatePair<FirstGrid, PlainMoment>>)  \
  ROW(kFamily, kLogSigned, kBFloat, FamilyPair<SeparatePair<FirstGrid, SecondBFloat>>)\
  ROW(kFamily, kLogSigned, kRoot, FamilyPair<SeparatePair<FirstGrid, RootMoment>>)    \
  ROW(kFamily, kLogSigned, kLog, FamilyPair<SeparatePair<FirstGrid, LogMoment>>)      \
  ROW(kFamily, kFp8, kPlain, FamilyPair<SeparatePair<FirstFp8, PlainMoment>>)         \
  ROW(kFamily, kFp8, kBFloat, FamilyPair<SeparatePair<FirstFp8, SecondBFloat>>)       \
  ROW(kFamily, kFp8, kRoot, FamilyPair<SeparatePair<FirstFp8, RootMoment>>)           \
  ROW(kFamily, kFp8, kLog, FamilyPair<SeparatePair<FirstFp8, LogMoment>>)             \
  ROW(kFamily, kTable, kPlain, FamilyPair<SeparatePair<TableMoment, PlainMoment>>)    \
  ROW(kFamily, kTable, kBFloat, FamilyPair<SeparatePair<TableMoment, SecondBFloat>>)  \
  ROW(kFamily, kTable, kRoot, FamilyPair<SeparatePair<TableMoment, RootMoment>>)      \
  ROW(kFamily, kTable, kLog, FamilyPair<SeparatePair<TableMoment, LogMoment>>)        \
  ROW(kLion, kPlain, kNone, LionMoment<PlainMoment>)                          \
  ROW(kLion, kBFloat, kNone, LionMoment<FirstBFloat>)                         \
  ROW(kLion, kLogSigned, kNone, LionMoment<FirstGrid>)                        \
  ROW(kLion, kFp8, kNone, LionMoment<FirstFp8>)                               \
  ROW(kLion, kTable, kNone, LionMoment<TableMoment>)

// Of those, the ones that may have one scale for the whole tensor.
#define LUMA_WHOLE(ROW)                                               \
  ROW(kAdamW, kLogSigned, kLogRoot, LogGridPair)                      \
  ROW(kAdamW, kPlain, kPlain, SeparatePair<PlainMoment, PlainMoment>) \
  ROW(kFamily, kLogSigned, kLogRoot, FamilyPair<LogGridPair>)                     \
  ROW(kFamily, kPlain, kPlain, FamilyPair<SeparatePair<PlainMoment, PlainMoment>>)\
  ROW(kLion, kPlain, kNone, LionMoment<PlainMoment>)                  \
  ROW(kLion, kLogSigned, kNone, LionMoment<FirstGrid>)

#define LUMA_LAMB(ROW)                                                \
  ROW(kLamb, kLogSigned, kLogRoot, LogGridPair)                       \
  ROW(kLamb, kPlain, kPlain, SeparatePair<PlainMoment, PlainMoment>)  \
  ROW(kLamb, kPlain, kRoot, SeparatePair<PlainMoment, RootMoment>)    \
  ROW(kLamb, kPlain, kLog, SeparatePair<PlainMoment, LogMoment>)      \
  ROW(kLamb, kBFloat, kBFloat, SeparatePair<FirstBFloat, SecondBFloat>) \
  ROW(kLamb, kFp8, kPlain, SeparatePair<FirstFp8, PlainMoment>)       \
  ROW(kLamb, kTable, kPlain, SeparatePair<TableMoment, PlainMoment>)  \
  ROW(kLamb, kTable, kRoot, SeparatePair<TableMoment, RootMoment>)    \
  ROW(kLamb, kTable, kLog, SeparatePair<TableMoment, LogMoment>)

// Adam-mini, where the second moment is one value for each segment.
#define LUMA_MINI(ROW)                    \
  ROW(kMini, kPlain, kNone, PlainMoment)  \
  ROW(kMini, kBFloat, kNone, FirstBFloat) \
  ROW(kMini, kLogSigned, kNone, FirstGrid) \
  ROW(kMini, kFp8, kNone, FirstFp8)       \
  ROW(kMini, kTable, kNone, TableMoment)

namespace luma {

constexpr int32_t instance(int32_t rule, int32_t first, int32_t second) {
  return (rule * kKinds + first) * kKinds + second;
}

static inline int32_t instance(const Step& s) {
  return instance(s.rule, s.first.kind, s.second.kind);
}

}  // namespace luma
